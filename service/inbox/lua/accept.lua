-- Store an event once, and wake a worker for it: the record, the moment to look again and the RQ
-- job are written together or not at all. Asked again (a duplicate, or a retry after a lost
-- reply) it changes nothing.
-- ARGV   key, limit of pending events, reopen dead ones (1 or 0), then the fields of the record:
--        name, value, ...
-- Answers new | pending | done | dead | reopened | full
local key = ARGV[1]
local state, leads_to = state_of(key)
if leads_to then
  -- The same change came in the other form and is known under that id.
  state = state_of(leads_to)
  if state then key = leads_to else redis.call('DEL', RECORD .. key) end
end
if state and not (state == 'dead' and ARGV[3] == '1') then return state end
if redis.call('ZCARD', DUE) >= tonumber(ARGV[2]) then return 'full' end

local now = now_ms()
if state then
  reopen(key, 'dead', now)
  return 'reopened'
end
redis.call('HSET', RECORD .. key, 'state', 'pending', 'accepted', int(now), unpack(ARGV, 4))
wake(key, now)
return 'new'
