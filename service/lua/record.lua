-- Write down how one handler fared.
-- ARGV   key, token, handler, status, attempts, delay until the next attempt (ms), reason
-- Answers 0 when the claim is no longer the owner, else now.
local record = RECORD .. ARGV[1]
if not owned(ARGV[1], ARGV[2]) then return 0 end
local now = now_ms()
local since = now - redis.call('HGET', record, 'accepted')
local due = ARGV[4] == 'retry' and int(now + tonumber(ARGV[6])) or ''
redis.call('HSET', record, 'h:' .. ARGV[3],
  table.concat({ARGV[4], ARGV[5], int(since), due, ARGV[7]}, '|'))
redis.call('HDEL', record, 'lapses', 'waits')
return int(now)
