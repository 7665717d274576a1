-- Have no worker claim an event for a while, or none of one account. A pause that ends later stays.
-- ARGV   how long (ms), why, account or ''
-- Answers 1
local name, ends = ARGV[3] == '' and PAUSE or PAUSE .. ':' .. ARGV[3], now_ms() + ARGV[1]
local kept = redis.call('GET', name)
if kept and tonumber(string.match(kept, '^%d+')) >= ends then return 1, true end
redis.call('SET', name, int(ends) .. ' ' .. ARGV[2], 'PX', ARGV[1])
return 1
