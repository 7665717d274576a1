-- Run an event again because a person asked for it.
-- ARGV   key, which handlers ('dead', 'all', or a name)
-- Answers replayed | pending | gone
local state, leads_to = state_of(ARGV[1])
if not state or leads_to then return 'gone' end
if state == 'pending' then return 'pending' end
reopen(ARGV[1], ARGV[2], now_ms())
return 'replayed'
