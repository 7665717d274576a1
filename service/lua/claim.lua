-- Take this event for a while.
-- ARGV   key
-- Answers what claim (lib.lua) answers.
return (claim(ARGV[1], now_ms()))
