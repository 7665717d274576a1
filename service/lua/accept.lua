-- Store an event once, and wake a worker for it: the record, the moment to look again and the RQ
-- job are written together or not at all. Asked again (a duplicate, or a retry after a lost
-- reply) it changes nothing.
-- KEYS   record, due, dead
-- ARGV   key, horizon (ms), limit of pending events, reopen dead ones (1 or 0), time stamp for RQ,
--        then the fields of the record: name, value, ...
-- Answers new | pending | done | dead | reopened | full
local record, due, dead = KEYS[1], KEYS[2], KEYS[3]
local key, horizon, stamp = ARGV[1], tonumber(ARGV[2]), ARGV[5]

local state = redis.call('HGET', record, 'state')
if state and not (state == 'dead' and ARGV[4] == '1') then return state end
if redis.call('ZCARD', due) >= tonumber(ARGV[3]) then return 'full' end

local now = now_ms()
if state then
  reopen(key, record, due, dead, 'dead')
else
  redis.call('HSET', record, 'state', 'pending', 'accepted', int(now), unpack(ARGV, 6))
end
wake(key, record, due, now, horizon, stamp)
return state and 'reopened' or 'new'
