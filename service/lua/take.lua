-- Pop the next wake-up and claim its event in the same step: whoever dies afterwards leaves a lease
-- that runs out, never an event in nobody's hands. The RQ job is used up with it; nothing of it
-- but the key in its id is read, so that a forged job can do no more than name an event.
-- KEYS   queue, due, dead
-- ARGV   prefix of records, lease (ms), how long to wait for a busy session (ms), lapses that
--        quarantine
-- Answers {} when the queue is empty, else {key, what claim answers}.
local id = redis.call('LPOP', KEYS[1])
if not id then return {} end
redis.call('DEL', 'rq:job:' .. id)
local key = string.match(id, '^([%w_-]+)%-%d+$')
if not key then return {id, {'gone'}} end
return {key, claim(key, ARGV[1] .. key, KEYS[2], KEYS[3], tonumber(ARGV[2]), tonumber(ARGV[3]),
  tonumber(ARGV[4]))}
