-- End an event: done (kept for a while, so that a late duplicate is known) or dead.
-- ARGV   key, token, done | dead, outcome, reason
-- Answers -1 when the claim is no longer the owner, else the milliseconds since it was accepted.
if not owned(ARGV[1], ARGV[2]) then return -1 end
local now = now_ms()
let_go(ARGV[1], ARGV[2], now)
settle(ARGV[1], ARGV[3], ARGV[4], ARGV[5], now)
return now - redis.call('HGET', RECORD .. ARGV[1], 'accepted')
