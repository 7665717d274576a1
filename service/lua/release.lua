-- Give a claim back: the event is due again later, or at once when the delay is 0.
-- KEYS   record, due
-- ARGV   key, token, delay (ms), why, horizon (ms), time stamp for RQ
-- Answers 0 when the claim is no longer the owner, else 1.
local record, due = KEYS[1], KEYS[2]
local key, token, delay = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not owned(record, token) then return 0 end
let_go(key, record, token)
local now = now_ms()
if delay > 0 then
  redis.call('HINCRBY', record, 'waits', 1)
  redis.call('HSET', record, 'not_before', int(now + delay), 'reason', ARGV[4])
  redis.call('ZADD', due, int(now + delay), key)
else
  wake(key, record, due, now, tonumber(ARGV[5]), ARGV[6])
end
return 1
