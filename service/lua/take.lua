-- Pop the next wake-up and claim its event in the same step: whoever dies afterwards leaves a lease
-- that runs out, never an event in nobody's hands. The RQ job is used up with it; nothing of it
-- but the key in its id is read, so that a forged job can do no more than name an event.
-- Keeps all workers together within a rate of calls of Stripe's API, of which an event takes one,
-- or two when it is thin and its other form is not known: a leaky bucket with room for a second.
-- ARGV   calls a second; 0 for no limit
-- Answers {} when the queue is empty, {paused} while there is a pause, {throttled} when the rate
-- is used up, else what claim (lib.lua) answers.
if redis.call('EXISTS', PAUSE) == 1 then return {'paused'} end
local rate, now = tonumber(ARGV[1]), now_ms()
local full = rate > 0 and math.max(now, tonumber(redis.call('GET', BUDGET)) or 0)
if full and full - now > 1000 then return {'throttled'} end
local id = redis.call('LPOP', QUEUE)
if not id then return {} end
redis.call('DEL', 'rq:job:' .. id)
local key = string.match(id, '^([%w_-]+)%-%d+$')
local answer = key and claim(key) or {'gone'}
if full and answer[1] == 'claimed' then
  local fields = redis.call('HMGET', RECORD .. key, 'form', 'twin')
  local calls = (fields[1] == 'thin' and not fields[2]) and 2 or 1
  redis.call('SET', BUDGET, int(full + calls * 1000 / rate), 'PX', 5000)
end
return answer
