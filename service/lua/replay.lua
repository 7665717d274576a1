-- Run an event again because a person asked for it.
-- KEYS   record, due, dead
-- ARGV   key, which handlers ('dead', 'all', or a name), horizon (ms), time stamp for RQ
-- Answers replayed | pending | gone
local record, due, dead = KEYS[1], KEYS[2], KEYS[3]
local key, which = ARGV[1], ARGV[2]
local state = redis.call('HGET', record, 'state')
if not state then return 'gone' end
if state == 'pending' then return 'pending' end
reopen(key, record, due, dead, which)
wake(key, record, due, now_ms(), tonumber(ARGV[3]), ARGV[4])
return 'replayed'
