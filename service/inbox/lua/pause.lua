-- Have no worker claim an event for a while.
-- ARGV   how long (ms), why
-- Answers 1
redis.call('SET', PAUSE, int(now_ms() + ARGV[1]) .. ' ' .. ARGV[2], 'PX', ARGV[1])
return 1
