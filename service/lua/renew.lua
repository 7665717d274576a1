-- The heartbeat of a claim.
-- KEYS   record, due
-- ARGV   key, token, lease (ms)
-- Answers 1, or 0 when the claim is no longer the owner and must stop.
local key, token, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not owned(KEYS[1], token) then return 0 end
-- The lease had run out and another event of the session went ahead.
local lock = session_lock(KEYS[1])
local holder = redis.call('GET', lock)
if holder and holder ~= key .. ' ' .. token then return 0 end
local ends = int(now_ms() + lease)
redis.call('HSET', KEYS[1], 'lease', ends)
redis.call('ZADD', KEYS[2], ends, key)
redis.call('SET', lock, key .. ' ' .. token, 'PX', lease)
return 1
