-- Keep an event as done that is not known, without running anything for it: after a restore, one that was
-- handled before. The newest come first: what its session heard later stays.
-- ARGV   key, who asked for it, account or '', then the fields of the record: name, value, ...
-- Answers adopted | pending | done | dead: it is known, and stays as it is
local key, state = find(ARGV[1])
if state then return state, true end
local now, fields = now_ms(), {}
for i = 4, #ARGV, 2 do fields[ARGV[i]] = ARGV[i + 1] end
fields.accepted, fields.took, fields.outcome = int(now), '0', 'as_done'
fields.acts = acted(fields, now, 'as-done', ARGV[2], '')
redis.call('SET', DONE .. key, line_of(fields), 'EX', KEEP)
list_event(key, now, fields.session)
heard(event_of(key, fields), now, 'HSETNX')
if ARGV[3] ~= '' then redis.call('ZADD', ACCOUNTS, 'NX', 0, ARGV[3]) end
return 'adopted'
