-- Write down how one handler fared.
-- ARGV   key, token, handler, status, attempts, delay until the next attempt (ms), reason,
--        when it first failed (ms; empty if it did not)
-- Answers 0 when the claim is no longer the owner, else now.
local event = held(ARGV[1], ARGV[2])
if not event then return 0 end
local now = now_ms()
redis.call('HSET', RECORD .. event.key, noted(event, now, unpack(ARGV, 3)))
if event.failed then redis.call('HDEL', RECORD .. event.key, 'lapses', 'faults', 'ran') end
return int(now)
