-- Put in front of every script of this folder. The keys are described in service/inbox.py.
--
-- Times are milliseconds of Redis TIME, the one clock that every lease, horizon and retry is
-- written and compared with: no node's clock enters.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function int(n) return string.format('%.0f', n) end

local QUEUE = 'rq:queue:identity'
local SEQUENCE = 'iw:seq'

-- The number of the wake-up at the head of the queue; nil when there is none of ours.
local function head_of_queue()
  local id = redis.call('LINDEX', QUEUE, 0)
  return id and tonumber(string.match(id, '%-(%d+)$'))
end

-- Put a fresh RQ job for this event at the end of the queue. `horizon`: when to look again in
-- case the wake-up gets lost. The id is new each time: with one id for all, the end of an old
-- run would delete the job of the new one.
local function wake(key, record, due, now, horizon, stamp)
  local number = redis.call('INCR', SEQUENCE)
  local id = key .. '-' .. int(number)
  redis.call('HSET', 'rq:job:' .. id,
    'created_at', stamp, 'enqueued_at', stamp, 'status', 'queued', 'origin', 'identity',
    'data', '["workers.jobs.process_event", null, ["' .. key .. '"], {}]',
    'description', key, 'timeout', '-1', 'result_ttl', '0', 'failure_ttl', '3600')
  redis.call('SADD', 'rq:queues', QUEUE)
  redis.call('RPUSH', QUEUE, id)
  redis.call('HSET', record, 'wake', int(number))
  redis.call('ZADD', due, int(now + horizon), key)
end

-- The key of the lock that keeps two handlers from running at once for one session.
local function session_lock(record)
  local fields = redis.call('HMGET', record, 'account', 'session')
  return 'iw:session:' .. (fields[1] or '') .. ':' .. fields[2]
end

-- Whether the claim with this token still owns the event.
local function owned(record, token)
  local fields = redis.call('HMGET', record, 'state', 'token', 'lease')
  return fields[1] == 'pending' and fields[2] == token and fields[3]
end

-- End the lease and free the session.
local function let_go(key, record, token)
  local lock = session_lock(record)
  if redis.call('GET', lock) == key .. ' ' .. token then redis.call('DEL', lock) end
  redis.call('HDEL', record, 'lease')
end

-- Make a dead (or done) event pending again. `which`: 'dead' re-runs the handlers that died,
-- 'all' every one, anything else the handler of that name.
local function reopen(key, record, due, dead, which)
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
  redis.call('HSET', record, 'state', 'pending', 'reopened', int(now_ms()))
  redis.call('PERSIST', record)
  redis.call('ZREM', dead, key)
end

-- Take an event for a while: a lease (ms), and a token that is higher at each claim. A holder that
-- lost its lease without noticing (a stopped process, a cut network) is refused by its old token.
-- Answers {state} (done | dead), or {gone | leased | early | busy | quarantined},
-- or {claimed, token, now, the whole record: name, value, ...}.
local function claim(key, record, due, dead, lease, busy, max_lapses)
  local fields = redis.call('HMGET', record, 'state', 'lease', 'not_before', 'token')
  local state, ends, not_before = fields[1], tonumber(fields[2]), tonumber(fields[3])
  if not state then return {'gone'} end
  if state ~= 'pending' then return {state} end

  local now = now_ms()
  if ends and ends > now then return {'leased'} end
  -- A surplus wake-up must not run an event before its retry is due.
  if not_before and not_before > now then return {'early'} end

  -- A lease that ran out unreleased: its holder died. One that kills its worker again and again
  -- is set aside before it stops everything else.
  if ends then
    let_go(key, record, fields[4])
    if redis.call('HINCRBY', record, 'lapses', 1) >= max_lapses then
      redis.call('HSET', record, 'state', 'dead', 'reason', 'quarantined', 'settled', int(now))
      redis.call('ZREM', due, key)
      redis.call('ZADD', dead, int(now), key)
      return {'quarantined'}
    end
  end

  local lock = session_lock(record)
  local holder = redis.call('GET', lock)
  if holder and string.match(holder, '^%S+') ~= key then
    local later = int(now + busy)
    redis.call('HSET', record, 'not_before', later)
    redis.call('ZADD', due, later, key)
    return {'busy'}
  end

  local token = int(redis.call('HINCRBY', record, 'token', 1))
  redis.call('HSET', record, 'lease', int(now + lease))
  redis.call('HDEL', record, 'not_before')
  redis.call('ZADD', due, int(now + lease), key)
  redis.call('SET', lock, key .. ' ' .. token, 'PX', lease)
  return {'claimed', token, int(now), redis.call('HGETALL', record)}
end
