-- Give a claim back: the event is due again later, or at once when the delay is 0.
-- ARGV   key, token, delay (ms), why
-- Answers 0 when the claim is no longer the owner, else 1.
local key, record, delay = ARGV[1], RECORD .. ARGV[1], tonumber(ARGV[3])
if not owned(key, ARGV[2]) then return 0 end
local now = now_ms()
let_go(key, ARGV[2], now)
if delay > 0 then
  redis.call('HINCRBY', record, 'waits', 1)
  redis.call('HSET', record, 'not_before', int(now + delay), 'reason', ARGV[4])
  redis.call('ZADD', DUE, int(now + delay), key)
else
  wake(key, now)
end
return 1
