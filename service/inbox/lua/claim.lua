-- Pop the next wake-ups and claim their events in the same step: if the worker dies afterwards, its
-- leases expire. The RQ job is deleted; only the event key in its id is read, so a forged job can do
-- no more than name an event.
-- Keeps all workers together within a rate of calls of Stripe's API, of which an event takes one,
-- or two when it is thin and its other form is not known: a leaky bucket with room for a second.
-- ARGV   how many at most; calls a second, 0 for no limit
-- Answers what claim (lib.lua) answers for each: fewer when the queue gets empty; the last one may be
-- {paused} while there is a pause, or {throttled} when the rate is used up.
local rate, now, answers = tonumber(ARGV[2]), now_ms(), {}
local flags = redis.call('MGET', PAUSE, BUDGET)
local paused_until = flags[1] and tonumber(string.match(flags[1], '^%d+'))
if paused_until and paused_until > now then return {{'paused'}}, true end
local full = rate > 0 and math.max(now, tonumber(flags[2]) or 0)
while #answers < tonumber(ARGV[1]) do
  if full and full - now > 1000 then
    answers[#answers + 1] = {'throttled'}
    break
  end
  local id = redis.call('LPOP', QUEUE)
  if not id then break end
  redis.call('DEL', JOB .. id)
  local key = string.match(id, '^([%w_-]+)%-%d+$')
  local answer, fields = {'gone'}, nil
  if key then answer, fields = claim(key, now) end
  answers[#answers + 1] = answer
  if full and fields then
    full = full + ((fields.form == 'thin' and not fields.twin) and 2 or 1) * 1000 / rate
  end
end
if full and full > now then redis.call('SET', BUDGET, int(full), 'PX', 5000) end
return answers, #answers == 0
