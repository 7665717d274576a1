-- Say that a claimed event and another id are one change, delivered in two forms. The one that was
-- accepted first is worked on, unless the other was claimed before; the other id leads to it.
-- ARGV   key, token, key of the other form; empty: there is none, which is written down
-- Answers first: this event is the one | second: the other is, and this id leads to it
--         | lost: the claim is no longer the owner
local event = held(ARGV[1], ARGV[2])
if not event then return 'lost' end
if ARGV[3] == '' then
  redis.call('HSETNX', RECORD .. event.key, 'twin', '')
  return 'first'
end
local other, state = find(ARGV[3])
if other == event.key then return 'first' end
local fields = state == 'pending' and record_of(other)
if not state or (fields and not fields.token and tonumber(fields.accepted) >= event.accepted) then
  if fields then leave_line(other, fields) end
  lead(other, event.key)
  return 'first'
end
let_go(event, now_ms())
lead(event.key, other, state == 'done')
return 'second'
