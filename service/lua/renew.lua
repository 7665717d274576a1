-- The heartbeat of a claim.
-- ARGV   key, token
-- Answers 1, or 0 when the claim is no longer the owner and must stop.
local key, token = ARGV[1], ARGV[2]
if not owned(key, token) then return 0 end
-- The lease had run out and another event of the session went ahead.
local lock = SESSION .. session(RECORD .. key)
local holder = redis.call('GET', lock)
if holder and holder ~= key .. ' ' .. token then return 0 end
local ends = int(now_ms() + LEASE)
redis.call('HSET', RECORD .. key, 'lease', ends)
redis.call('ZADD', DUE, ends, key)
redis.call('SET', lock, key .. ' ' .. token, 'PX', LEASE)
return 1
