-- Store an event once, and wake a worker for it: the record, the moment to look again and the RQ
-- job are written together or not at all. A duplicate changes nothing.
-- ARGV   key, limit of pending events, reopen dead ones (1 or 0), account or '', then the fields of
--        the record: name, value, ...
-- Answers new | pending | done | dead | reopened | full; `full` only of an event that is not known.
-- Redis runs it also when its memory is full, up to the first write.
local key, state = find(ARGV[1])
local is_full = redis.call('ZCARD', DUE) >= tonumber(ARGV[2])
if is_full or (state and not (state == 'dead' and ARGV[3] == '1')) then
  return state or 'full', true
end
local now = now_ms()
if state then
  -- With its memory full Redis refuses this, but nothing that comes behind a write.
  if type(redis.pcall('INCR', SEQUENCE)) == 'table' then return state, true end
  reopen(key, 'dead', now)
  return 'reopened'
end
redis.call('HSET', RECORD .. key, 'state', 'pending', 'accepted', int(now), unpack(ARGV, 5))
if ARGV[4] ~= '' then redis.call('ZADD', ACCOUNTS, 'NX', 0, ARGV[4]) end
wake(key, now)
return 'new'
