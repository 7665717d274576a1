-- Take one call of Stripe's API out of the rate that all processes share; see claim.lua.
-- ARGV   calls a second
-- Answers 0 when it is taken, else how long to wait before asking again (ms).
local now = now_ms()
local full = math.max(now, tonumber(redis.call('GET', BUDGET)) or 0)
if full - now > 1000 then return math.ceil(full - now - 1000), true end
redis.call('SET', BUDGET, int(full + 1000 / ARGV[1]), 'PX', 5000)
return 0
