-- End an event: done (kept for a while, so that a late duplicate is known) or dead.
-- ARGV   key, token, done | dead, outcome, reason; and if not yet written down, how the last handler
--        fared: handler, status, attempts, delay, reason, since
-- Answers -1 when the claim is no longer the owner, else the milliseconds since it was accepted.
local event = held(ARGV[1], ARGV[2])
if not event then return -1 end
local now = now_ms()
settle(event, ARGV[3], ARGV[4], ARGV[5], now, noted(event, now, unpack(ARGV, 6)))
return now - event.accepted
