-- Store an event once, and wake a worker for it: the record, the moment to look again and the RQ
-- job are written together or not at all. A duplicate changes nothing.
-- ARGV   nonce, key, limit of pending events, reopen dead ones (1 or 0), account or '', session, then
--        the fields of the record: name, value, ...
-- Answers new | pending | done | dead | reopened | full; `full` only of an event that is not known.
-- A caller that got no reply repeats the call with the same nonce. The record keeps the nonce while the
-- event is pending, which costs Redis less than a kept answer (once.lua): this script runs for every
-- delivery.
-- Redis runs it also when its memory is full, up to the first write.
local nonce, key, state = ARGV[1], find(ARGV[2])
if state == 'pending' then
  local asked, reopened = unpack(redis.call('HMGET', RECORD .. key, 'asked', 'reopened'))
  if asked == nonce then return reopened and 'reopened' or 'new' end
end
local is_full = redis.call('ZCARD', DUE) >= tonumber(ARGV[3])
if is_full or (state and not (state == 'dead' and ARGV[4] == '1')) then return state or 'full' end
read_clock(redis.call('GET', CLOCK))
local now = now_ms()
if state then
  -- A full Redis refuses this first write; once it has passed, none of the later ones is refused.
  if type(redis.pcall('INCR', SEQUENCE)) == 'table' then return state end
  reopen(key, 'dead', now, '')
  redis.call('HSET', RECORD .. key, 'asked', nonce)
  return 'reopened'
end
redis.call('HSET', RECORD .. key, 'state', 'pending', 'accepted', int(now), 'asked', nonce,
  'wake', enqueue(key, now), unpack(ARGV, 7))
redis.call('ZADD', DUE, int(now + HORIZON), key)
list_event(key, now, ARGV[6])
if ARGV[5] ~= '' then redis.call('ZADD', ACCOUNTS, 'NX', 0, ARGV[5]) end
return 'new'
