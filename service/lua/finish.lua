-- End an event: done (kept for the time given, so that a late duplicate is known) or dead.
-- KEYS   record, due, dead
-- ARGV   key, token, done | dead, outcome, reason, time to keep a done record (s)
-- Answers -1 when the claim is no longer the owner, else the milliseconds since it was accepted.
local record, due, dead = KEYS[1], KEYS[2], KEYS[3]
local key, token, state = ARGV[1], ARGV[2], ARGV[3]
if not owned(record, token) then return -1 end
let_go(key, record, token)
local now = now_ms()
redis.call('HSET', record, 'state', state, 'settled', int(now), 'outcome', ARGV[4])
redis.call('HDEL', record, 'wake', 'waits', 'lapses', 'reason')
if ARGV[5] ~= '' then redis.call('HSET', record, 'reason', ARGV[5]) end
redis.call('ZREM', due, key)
if state == 'dead' then
  redis.call('ZADD', dead, int(now), key)
else
  redis.call('EXPIRE', record, ARGV[6])
end
return now - redis.call('HGET', record, 'accepted')
