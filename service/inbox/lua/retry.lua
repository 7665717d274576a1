-- Run a pending event at once that waits: for the retry of a handler, for Stripe, or after a pause. What is
-- written down of its handlers stays.
-- ARGV   key, who asked for it
-- Answers retried | leased: a worker has it | dead | done | gone
local key, state = find(ARGV[1])
if state ~= 'pending' then return state or 'gone', true end
local fields, now = record_of(key), now_ms()
if is_claimed(fields, now) then return 'leased', true end
take_from_dead(key, fields, now)
for name, value in pairs(fields) do
  local head, tail = string.match(value, '^(retry|%d+|%d+|)%d*(.*)$')
  if head and string.sub(name, 1, 2) == 'h:' then
    redis.call('HSET', RECORD .. key, name, head .. int(now) .. tail)
  end
end
local acts = acted(fields, now, 'retry', ARGV[2], '')
if acts then redis.call('HSET', RECORD .. key, 'acts', acts) end
leave_line(key, fields)
redis.call('HDEL', RECORD .. key, 'not_before')
wake(key, now)
return 'retried'
