-- Take an event for a while (see claim in lib.lua).
-- KEYS   record, due, dead
-- ARGV   key, lease (ms), how long to wait for a busy session (ms), lapses that quarantine
-- Answers what claim answers.
return claim(ARGV[1], KEYS[1], KEYS[2], KEYS[3], tonumber(ARGV[2]), tonumber(ARGV[3]),
  tonumber(ARGV[4]))
