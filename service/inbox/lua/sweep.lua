-- Wake what is past due: retries, leases that ran out, wake-ups that got lost. Any number of
-- sweepers may run: each event is looked at and moved in one step.
-- A wake-up that still waits in the queue is not doubled: numbers rise along the queue, so one
-- that is not lower than the head's has not been taken yet. It is looked at again after the
-- horizon, or half the event's age when that is longer: a backlog of hours is not gone through
-- every minute.
-- ARGV   how many at most
-- Answers woken, postponed, stale
local now = now_ms()
local woken, postponed, stale = 0, 0, 0
for _, key in ipairs(redis.call('ZRANGE', DUE, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, ARGV[1])) do
  local fields = redis.call('HMGET', RECORD .. key, 'state', 'wake', 'accepted')
  local id = redis.call('LINDEX', QUEUE, 0)
  local head = id and tonumber(string.match(id, '%-(%d+)$'))
  if fields[1] ~= 'pending' then
    redis.call('ZREM', DUE, key)
    stale = stale + 1
  elseif head and fields[2] and tonumber(fields[2]) >= head then
    redis.call('ZADD', DUE, int(now + math.max(HORIZON, (now - fields[3]) / 2)), key)
    postponed = postponed + 1
  else
    wake(key, now)
    woken = woken + 1
  end
end
return {woken, postponed, stale}
