-- Write down how one handler fared.
-- KEYS   record
-- ARGV   token, handler, status, attempts, delay until the next attempt (ms), reason
-- Answers 0 when the claim is no longer the owner, else now.
if not owned(KEYS[1], ARGV[1]) then return 0 end
local now = now_ms()
local since = now - redis.call('HGET', KEYS[1], 'accepted')
local due = ARGV[3] == 'retry' and int(now + tonumber(ARGV[5])) or ''
redis.call('HSET', KEYS[1], 'h:' .. ARGV[2],
  table.concat({ARGV[3], ARGV[4], int(since), due, ARGV[6]}, '|'))
redis.call('HDEL', KEYS[1], 'lapses', 'waits')
return int(now)
