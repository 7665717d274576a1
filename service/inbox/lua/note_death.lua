-- Note which handler ran when the process died that held a claim. Should that be its last holder, the
-- event is quarantined, with the name of that handler in its reason.
-- ARGV   key, token, handler
-- Answers 1, or 0 when somebody else has had the event since.
if not held(ARGV[1], ARGV[2]) then return 0, true end
redis.call('HSET', RECORD .. ARGV[1], 'ran', ARGV[3])
return 1
