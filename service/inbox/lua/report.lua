-- Note what a process says of itself, and when things were last seen.
-- ARGV   nonce (not looked at: asking twice changes nothing), the process's id, what it says, then the
--        names of what was seen
-- Answers 1
read_clock(redis.call('GET', CLOCK))
local now = int(now_ms())
redis.call('HSET', PROCESSES, ARGV[2], now .. ' ' .. ARGV[3])
for i = 4, #ARGV do redis.call('HSET', SEEN, ARGV[i], now) end
return 1
