-- End an event, whatever its handlers wait for, because a person asked for it.
-- ARGV   key
-- Answers ended | done: it was already | leased: a worker has it | gone
local key, state = find(ARGV[1])
if state ~= 'pending' and state ~= 'dead' then return state or 'gone' end
local fields = record_of(key)
if fields.lease then return 'leased' end
leave_line(key, fields)
redis.call('ZREM', DEAD, key)
settle(event_of(key, fields), 'done', 'ended', fields.reason, now_ms())
return 'ended'
