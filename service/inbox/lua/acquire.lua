-- Do a task once in a period, in whichever process asks first.
-- ARGV   task, period (ms)
-- Answers 1 when it is the caller's turn, else 0.
local turn, now = TURN .. ARGV[1], now_ms()
local until_then = tonumber(redis.call('GET', turn))
if until_then and until_then > now then return 0, true end
redis.call('SET', turn, int(now + ARGV[2]), 'PX', ARGV[2])
return 1
