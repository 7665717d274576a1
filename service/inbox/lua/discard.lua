-- End an event, whatever its handlers wait for, because a person asked for it.
-- ARGV   key, who asked for it
-- Answers discarded | done: it was already | leased: a worker has it | gone
local key, state = find(ARGV[1])
if state ~= 'pending' and state ~= 'dead' then return state or 'gone', true end
local fields, now = record_of(key), now_ms()
if is_claimed(fields, now) then return 'leased', true end
leave_line(key, fields)
if state == 'dead' then leave_dead(key, fields) end
fields.acts = acted(fields, now, 'discard', ARGV[2], '')
settle(event_of(key, fields), 'done', 'discarded', fields.reason, now)
return 'discarded'
