-- Stands in front of every script of this folder, behind the names that service/inbox.py gives
-- it: the keys (RECORD, SESSION, WAITING and LAST are prefixes; DUE, DEAD, QUEUE, SEQUENCE, PAUSE,
-- BUDGET) and the times (LEASE, HORIZON, BUSY in ms, KEEP and KEEP_LAST in s) and MAX_LAPSES.
--
-- Times are milliseconds of Redis TIME, the one clock that every lease, horizon and retry is
-- written and compared with: no node's clock enters.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function int(n) return string.format('%.0f', n) end

-- A moment as RQ writes it: 2026-11-23T04:05:06.789000Z.
local function stamp(ms)
  local day, ms_of_day = math.floor(ms / 86400000), ms % 86400000
  -- The civil date of a day, counted from 1 March of the year 0 in eras of 400 years.
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524)
    - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03d000Z',
    yoe + era * 400 + (month <= 2 and 1 or 0), month, doy - math.floor((153 * mp + 2) / 5) + 1,
    math.floor(ms_of_day / 3600000), math.floor(ms_of_day / 60000) % 60,
    math.floor(ms_of_day / 1000) % 60, ms_of_day % 1000)
end

-- Put a fresh RQ job for this event at the end of the queue, and look again after the horizon in
-- case it gets lost. The id is new each time; its number rises along the queue.
local function wake(key, now)
  local number = int(redis.call('INCR', SEQUENCE))
  local id, at = key .. '-' .. number, stamp(now)
  redis.call('HSET', 'rq:job:' .. id,
    'created_at', at, 'enqueued_at', at, 'status', 'queued', 'origin', 'identity',
    'data', '["workers.jobs.process_event", null, ["' .. key .. '"], {}]',
    'description', key, 'timeout', '-1', 'result_ttl', '0', 'failure_ttl', '3600')
  redis.call('SADD', 'rq:queues', QUEUE)
  redis.call('RPUSH', QUEUE, id)
  redis.call('HSET', RECORD .. key, 'wake', number)
  redis.call('ZADD', DUE, int(now + HORIZON), key)
end

-- The name of the session of an event, in the keys of its lock and of those who wait for it.
local function session(record)
  local fields = redis.call('HMGET', record, 'account', 'session')
  return (fields[1] or '') .. ':' .. fields[2]
end

-- Whether the claim with this token still owns the event.
local function owned(key, token)
  local fields = redis.call('HMGET', RECORD .. key, 'state', 'token', 'lease')
  return fields[1] == 'pending' and fields[2] == token and fields[3]
end

-- End the lease, free the session, and wake the event that has waited for it longest.
local function let_go(key, token, now)
  local record = RECORD .. key
  redis.call('HDEL', record, 'lease')
  local name = session(record)
  if redis.call('GET', SESSION .. name) ~= key .. ' ' .. token then return end
  redis.call('DEL', SESSION .. name)
  local waiter = redis.call('LPOP', WAITING .. name)
  if not waiter then return end
  local fields = redis.call('HMGET', RECORD .. waiter, 'state', 'lease')
  if fields[1] == 'pending' and not fields[2] then
    redis.call('HDEL', RECORD .. waiter, 'not_before')
    wake(waiter, now)
  end
end

-- End an event.
local function settle(key, state, outcome, reason, now)
  local record = RECORD .. key
  redis.call('HSET', record, 'state', state, 'settled', int(now), 'outcome', outcome)
  redis.call('HDEL', record, 'wake', 'waits', 'lapses', 'reason')
  if reason ~= '' then redis.call('HSET', record, 'reason', reason) end
  redis.call('ZREM', DUE, key)
  if state == 'dead' then
    redis.call('ZADD', DEAD, int(now), key)
    return
  end
  redis.call('EXPIRE', record, KEEP)
  if outcome ~= 'superseded' and outcome ~= 'twin' then
    redis.call('SET', LAST .. session(record), redis.call('HGET', record, 'kind'), 'EX', KEEP_LAST)
  end
  local twin = redis.call('HGET', record, 'twin')
  if twin then redis.call('EXPIRE', RECORD .. twin, KEEP) end
end

-- Make a settled event pending again. `which`: 'dead' re-runs the handlers that died, 'all' every
-- one, anything else the handler of that name.
local function reopen(key, which, now)
  local record = RECORD .. key
  local fields = redis.call('HGETALL', record)
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if string.sub(name, 1, 2) == 'h:' and (which == 'all'
        or (which == 'dead' and string.sub(value, 1, 5) == 'dead|')
        or 'h:' .. which == name) then
      redis.call('HDEL', record, name)
    end
  end
  redis.call('HDEL', record, 'reason', 'outcome', 'settled', 'not_before', 'lapses', 'waits')
  redis.call('HSET', record, 'state', 'pending', 'reopened', int(now))
  redis.call('PERSIST', record)
  redis.call('ZREM', DEAD, key)
  wake(key, now)
end

-- Take an event for a while: a lease, and a token that is higher at each claim. A holder that lost
-- its lease without noticing (a stopped process, a cut network) is refused by its old token.
-- Answers {state} (done | dead), or {gone | leased | early | busy | quarantined},
-- or {claimed, token, now, the whole record: name, value, ...}.
local function claim(key)
  local record = RECORD .. key
  local fields = redis.call('HMGET', record, 'state', 'lease', 'not_before', 'token')
  local state, ends, not_before = fields[1], tonumber(fields[2]), tonumber(fields[3])
  if not state or state == 'twin' then return {'gone'} end
  if state ~= 'pending' then return {state} end

  local now = now_ms()
  if ends and ends > now then return {'leased'} end
  -- A surplus wake-up must not run an event before its retry is due.
  if not_before and not_before > now then return {'early'} end

  -- A lease that ran out unreleased: its holder died. One that kills its worker again and again
  -- is set aside before it stops everything else.
  if ends then
    let_go(key, fields[4], now)
    if redis.call('HINCRBY', record, 'lapses', 1) >= MAX_LAPSES then
      settle(key, 'dead', '', 'quarantined', now)
      return {'quarantined'}
    end
  end

  local name = session(record)
  local holder = redis.call('GET', SESSION .. name)
  if holder and string.match(holder, '^%S+') ~= key then
    redis.call('HSET', record, 'not_before', int(now + BUSY))
    redis.call('ZADD', DUE, int(now + BUSY), key)
    if not redis.call('LPOS', WAITING .. name, key) then
      redis.call('RPUSH', WAITING .. name, key)
    end
    return {'busy'}
  end

  local token = int(redis.call('HINCRBY', record, 'token', 1))
  redis.call('HSET', record, 'lease', int(now + LEASE))
  redis.call('HDEL', record, 'not_before')
  redis.call('ZADD', DUE, int(now + LEASE), key)
  redis.call('SET', SESSION .. name, key .. ' ' .. token, 'PX', LEASE)
  redis.call('LREM', WAITING .. name, 0, key)
  return {'claimed', token, int(now), redis.call('HGETALL', record)}
end
