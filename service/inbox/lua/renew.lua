-- The heartbeat of a claim.
-- ARGV   key, token
-- Answers 1, or 0 when the claim is no longer the owner and must stop.
local event = held(ARGV[1], ARGV[2])
if not event then return 0 end
-- The lease had run out and another event of the session went ahead.
local lock, owner = SESSION .. event.session, event.key .. ' ' .. event.token
local holder = redis.call('GET', lock)
if holder and holder ~= owner then return 0 end
local ends = int(now_ms() + LEASE)
redis.call('HSET', RECORD .. event.key, 'lease', ends)
redis.call('ZADD', DUE, ends, event.key)
redis.call('SET', lock, owner, 'PX', LEASE)
return 1
