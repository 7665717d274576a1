-- Wake events that are due: retries, expired leases, lost wake-ups. Any number of
-- sweepers may run: each event is looked at and moved in one step.
-- A wake-up that still waits in the queue is not doubled: numbers rise along the queue, so one
-- that is not lower than the head's has not been taken yet. It is looked at again after the
-- horizon, or half the event's age when that is longer: a backlog of hours is not gone through
-- every minute.
--
-- Before that it sees whether the clock of Redis was set. Back: the clock of the inbox goes on from
-- where it was, and gradually approaches that of Redis. Leases seem to have run out whose holders
-- live: forward all of them, back those that were written since the clock was set. So nothing is
-- claimed for a lease, in which they renew them.
-- ARGV   how many at most; what time it was at this caller's last sweep, and the ms since by the
--        caller's own clock, which nobody sets (both '' at the first)
-- Answers woken, postponed, stale, now, by how many ms the clock was found to be set
local now, seen = now_ms(), nil
local clock = redis.call('GET', CLOCK)
if clock then seen = tonumber(string.match(clock, ' (%d+)$')) end
local expected = tonumber(ARGV[2])
if expected then expected = expected + ARGV[3] else expected = math.max(now, seen or now) end
local step, before, run_out = now - expected, ahead, false
if step < -STEP then
  ahead, run_out = ahead - step, true
elseif step > STEP then
  ahead = ahead - math.min(ahead, step)
  run_out = step - (before - ahead) > STEP
else
  step = 0
  ahead = ahead - math.min(ahead, CATCH_UP)
end
now = now + ahead - before
if run_out then
  redis.call('SET', PAUSE, int(now + LEASE) .. ' clock set', 'PX', LEASE, 'NX')
end
if ahead ~= before or now - (seen or 0) > STEP then
  redis.call('SET', CLOCK, int(ahead) .. ' ' .. int(now))
end

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
return {woken, postponed, stale, int(now), int(step)}
