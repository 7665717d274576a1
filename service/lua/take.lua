-- Pop the next wake-up and claim its event in the same step: whoever dies afterwards leaves a lease
-- that runs out, never an event in nobody's hands. The RQ job is used up with it; nothing of it
-- but the key in its id is read, so that a forged job can do no more than name an event.
-- Answers {} when the queue is empty, {paused} while there is a pause, else what claim (lib.lua)
-- answers.
if redis.call('EXISTS', PAUSE) == 1 then return {'paused'} end
local id = redis.call('LPOP', QUEUE)
if not id then return {} end
redis.call('DEL', 'rq:job:' .. id)
local key = string.match(id, '^([%w_-]+)%-%d+$')
return key and claim(key) or {'gone'}
