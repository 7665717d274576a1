-- Run an event again because a person asked for it.
-- ARGV   key, which handlers ('dead', 'all', or a name), who asked for it
-- Answers replayed | leased: a worker has it | pending: it will run, and has no such handler to run
--         again | nothing: it is settled, and has no such handler: the record stays as it is | gone
local key, state = find(ARGV[1])
if not state then return 'gone', true end
local now = now_ms()
if is_claimed(record_of(key), now) then return 'leased', true end
if reopen(key, ARGV[2], now, ARGV[3]) then return 'replayed' end
return state == 'pending' and 'pending' or 'nothing', true
