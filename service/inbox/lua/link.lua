-- Say that a claimed event and another id are one change, delivered in two forms. Whichever is
-- known first is the one that is worked on; the other id leads to it.
-- ARGV   key, token, key of the other form
-- Answers first: this event is the one | second: the other is, and this one is settled
--         | lost: the claim is no longer the owner
local key, twin = ARGV[1], ARGV[3]
local event = held(key, ARGV[2])
if not event then return 'lost' end
local other, leads_to = state_of(twin)
if not other or leads_to == key then
  redis.call('HSET', RECORD .. twin, 'state', 'twin', 'twin', key)
  redis.call('HSET', RECORD .. key, 'twin', twin)
  return 'first'
end
settle(event, 'done', 'twin', twin, now_ms())
return 'second'
