-- Wake what is past due: retries, leases that ran out, wake-ups that got lost. Any number of
-- sweepers may run: each event is looked at and moved in one step.
-- A wake-up that still waits in the queue is not doubled: numbers rise along the queue, so one
-- that is not lower than the head's has not been taken yet, and is looked at again a horizon later.
-- KEYS   due
-- ARGV   how many at most, horizon (ms), time stamp for RQ, prefix of records
-- Answers woken, postponed, stale
local due, horizon = KEYS[1], tonumber(ARGV[2])
local now = now_ms()
local woken, postponed, stale = 0, 0, 0
for _, key in ipairs(redis.call('ZRANGE', due, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, ARGV[1])) do
  local record = ARGV[4] .. key
  local fields = redis.call('HMGET', record, 'state', 'wake')
  local head = head_of_queue()
  if fields[1] ~= 'pending' then
    redis.call('ZREM', due, key)
    stale = stale + 1
  elseif head and fields[2] and tonumber(fields[2]) >= head then
    redis.call('ZADD', due, int(now + horizon), key)
    postponed = postponed + 1
  else
    wake(key, record, due, now, horizon, ARGV[3])
    woken = woken + 1
  end
end
return {woken, postponed, stale}
