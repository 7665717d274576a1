-- Take an event for a while: a lease, and a token that is higher at each claim. A holder that
-- lost its lease without noticing (a stopped process, a cut network) is refused by its old token.
-- KEYS   record, due, dead
-- ARGV   key, lease (ms), how long to wait for a busy session (ms), lapses that quarantine
-- Answers the state (done | dead), or gone | leased | early | busy | quarantined,
--        or claimed, token, now, and the whole record: name, value, ...
local record, due, dead = KEYS[1], KEYS[2], KEYS[3]
local key, lease = ARGV[1], tonumber(ARGV[2])

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
  if redis.call('HINCRBY', record, 'lapses', 1) >= tonumber(ARGV[4]) then
    redis.call('HSET', record, 'state', 'dead', 'reason', 'quarantined', 'settled', int(now))
    redis.call('ZREM', due, key)
    redis.call('ZADD', dead, int(now), key)
    return {'quarantined'}
  end
end

local lock = session_lock(record)
local holder = redis.call('GET', lock)
if holder and string.match(holder, '^%S+') ~= key then
  local later = int(now + tonumber(ARGV[3]))
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
