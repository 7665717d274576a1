-- Run an event again because a person asked for it.
-- ARGV   key, which handlers ('dead', 'all', or a name)
-- Answers replayed | pending | gone
local state = redis.call('HGET', RECORD .. ARGV[1], 'state')
if not state or state == 'twin' then return 'gone' end
if state == 'pending' then return 'pending' end
reopen(ARGV[1], ARGV[2], now_ms())
return 'replayed'
