-- Give a claim back: the event is due again later, or at once when the delay is 0.
-- ARGV   key, token, delay (ms), why, whether for a fault of ours (1 or 0); and if not yet written
--        down, how the last handler fared: handler, status, attempts, delay, reason, since
-- Answers 0 when the claim is no longer the owner, else 1.
local event, delay = held(ARGV[1], ARGV[2]), tonumber(ARGV[3])
if not event then return 0 end
local key, record, now = event.key, RECORD .. event.key, now_ms()
if ARGV[6] then
  redis.call('HSET', record, noted(event, now, unpack(ARGV, 6)))
  redis.call('HDEL', record, 'lapses', 'faults', 'ran')
end
if ARGV[5] == '1' then redis.call('HINCRBY', record, 'faults', 1) end
let_go(event, now)
keep_listed(key, event.accepted, event.fields.session, now)
redis.call('HDEL', record, 'lease')
if delay > 0 then
  redis.call('HSET', record, 'not_before', int(now + delay), 'reason', ARGV[4])
  redis.call('ZADD', DUE, int(now + delay), key)
else
  wake(key, now)
end
return 1
