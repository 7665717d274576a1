-- What scripts of this folder share. In front of each stand those parts that it needs, a part being a
-- function that ends with a line `end`, or one line. Words in capitals are constants, of which
-- service/inbox/scripts.py puts in the values: keys (RECORD, DONE, SESSION, WAITING, LAST, ANSWER and JOB
-- are prefixes, as are LOG, OF and DEAD_OF), times (LEASE, HORIZON, BUSY, STEP, CATCH_UP, DAY, HOUR and
-- KEEP_ANSWER in ms, other KEEP... in s), MAX_..., and KEPT, a list.
--
-- Times are milliseconds by the clock of the inbox, the one that every lease, horizon and retry is
-- written and compared with. It is Redis TIME (no node's clock enters) and what that was set back by,
-- so that it never goes back: lua/sweep.lua sees to it. Every script calls `read_clock`
-- before it asks for the time.
local ahead = 0

local function read_clock(kept) ahead = kept and tonumber(string.match(kept, '^%d+')) or 0 end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000) + ahead
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

-- Put a fresh RQ job for this event at the end of the queue, and return its number: the id is new each
-- time, and its number rises along the queue. The key stands in the id and for people in the
-- description: as an argument it would make `data` longer than 64 bytes, and the hash twice as large
-- (hash-max-listpack-value).
local function enqueue(key, now)
  local number = int(redis.call('INCR', SEQUENCE))
  local id, at = key .. '-' .. number, stamp(now)
  redis.call('HSET', JOB .. id,
    'created_at', at, 'enqueued_at', at, 'status', 'queued', 'origin', 'identity',
    'data', '["workers.jobs.process_event", null, [], {}]',
    'description', key, 'timeout', '-1', 'result_ttl', '0', 'failure_ttl', '3600')
  -- RQ lists its queues there; one that was not empty is listed already.
  if redis.call('RPUSH', QUEUE, id) == 1 then redis.call('SADD', 'rq:queues', QUEUE) end
  return number
end

-- Wake a worker for an event, and look again after the horizon in case the job gets lost.
local function wake(key, now)
  redis.call('HSET', RECORD .. key, 'wake', enqueue(key, now))
  redis.call('ZADD', DUE, int(now + HORIZON), key)
end

-- The name of a session in the keys of its lock and of those who wait for it.
local function session_name(account, session) return (account or '') .. ':' .. session end

-- The record of an event that is not done: its fields by name, and as Redis lists them.
local function record_of(key)
  local list, fields = redis.call('HGETALL', RECORD .. key), {}
  for i = 1, #list, 2 do fields[list[i]] = list[i + 1] end
  return fields, list
end

-- What is kept of a done event, as KEPT says (service/inbox/record.py).
local function line_of(fields)
  local names, handlers, parts = KEPT, {}, {}
  for name, value in pairs(fields) do
    if string.sub(name, 1, 2) == 'h:' then
      handlers[#handlers + 1] = string.gsub(string.sub(name, 3) .. '|' .. value, '|+$', '')
    end
  end
  table.sort(handlers)
  for i, name in ipairs(names) do parts[i] = fields[name] or '' end
  for _, name in ipairs({'acts', 'trail'}) do
    if fields[name] then handlers[#handlers + 1] = '|' .. name .. '|' .. fields[name] end
  end
  for i, handler in ipairs(handlers) do parts[#names + i] = handler end
  -- Looked for first: to replace what is not there in each part takes half of the time of this function.
  if string.find(table.concat(parts), '%c') then
    for i, part in ipairs(parts) do parts[i] = string.gsub(part, '%c', ' ') end
  end
  return table.concat(parts, '\t') .. '\t'
end

local function fields_of(line)
  local names, fields, i = KEPT, {}, 0
  for part in string.gmatch(line, '([^\t]*)\t') do
    i = i + 1
    if not names[i] then
      local name, value = string.match(part, '^([^|]*)|(.*)$')
      if name == '' then
        name, value = string.match(value, '^(%a+)|(.*)$')
        fields[name] = value
      else
        fields['h:' .. name] = value
      end
    elseif part ~= '' then
      fields[names[i]] = part
    end
  end
  return fields
end

-- The beginning of a text, which ends with a whole character (UTF-8: a byte that goes on is 10xxxxxx).
local function cut(text, most)
  if #text <= most then return text end
  while most > 0 and math.floor(string.byte(text, most + 1) / 64) == 2 do most = most - 1 end
  return string.sub(text, 1, most)
end

-- Put an entry behind those of a list in one text, of which the last few stay.
local function appended(entries, entry, most)
  entries = entries and entries .. ';' .. entry or entry
  local _, others = string.gsub(entries, ';', '')
  for _ = most, others do entries = string.match(entries, ';(.*)$') end
  return entries
end

-- What people had done with an event, with one thing more: `<ms> <what> <who> <of which handlers>`.
-- Without a name nobody asked for it.
local function acted(fields, now, what, who, which)
  if who == '' then return fields.acts end
  return appended(fields.acts, int(now) .. ' ' .. what .. ' ' .. who .. ' ' .. which, MAX_ACTS)
end

-- The results of handlers that others took the place of, with one more: `handler|attempt|ms|reason`. Only
-- attempts that failed are kept.
local function failed(fields, handler)
  local attempts, ms, reason =
    string.match(fields['h:' .. handler] or '', '^%a+|([1-9]%d*)|(%d+)|?%d*|?([^|]*)')
  if not attempts or string.sub(fields['h:' .. handler], 1, 4) == 'done' then return fields.trail end
  reason = string.gsub(cut(reason, 80), '[;%c]', ',')
  return appended(fields.trail, table.concat({handler, attempts, ms, reason}, '|'), MAX_TRAIL)
end

-- Where an event is listed: by the hour in which it was accepted, and by its session. Many sessions share
-- a list, as in `heard`; three characters more of its id tell them apart.
local function places(key, accepted, session)
  local hour = math.floor(accepted / HOUR)
  return int(hour), OF .. int(math.floor(hour / HOURS_OF)) .. ':' .. string.sub(session, -2),
    string.sub(session, -5, -3) .. ' ' .. key
end

-- What is settled within a day needs no more than the time that a list is given when it begins.
local function list_by_hour(key, hour)
  if redis.call('RPUSH', LOG .. hour, key) > 1 then return end
  redis.call('EXPIRE', LOG .. hour, KEEP_LOG)
  redis.call('ZADD', HOURS, hour, hour)
  for _, old in ipairs(redis.call('ZRANGE', HOURS, 0, 9)) do
    if redis.call('EXISTS', LOG .. old) == 1 then break end
    redis.call('ZREM', HOURS, old)
  end
end

local function list_by_session(list, entry)
  if redis.call('RPUSH', list, entry) == 1 then redis.call('EXPIRE', list, KEEP_OF) end
end

local function list_event(key, accepted, session)
  local hour, list, entry = places(key, accepted, session)
  list_by_hour(key, hour)
  list_by_session(list, entry)
end

-- Have an event listed for as long as its record is kept from now on.
local function keep_listed(key, accepted, session, now)
  if now - accepted <= DAY then return end
  local hour, list, entry = places(key, accepted, session)
  local function is_gone(name)
    return redis.call('EXPIRE', name, KEEP, 'GT') == 0 and redis.call('EXISTS', name) == 0
  end
  if is_gone(LOG .. hour) then list_by_hour(key, hour) end
  if is_gone(list) then list_by_session(list, entry) end
end

-- The first words of a reason, which many events share: `failed KeyError`, `stripe missing`, `retry`.
local function cause_of(reason)
  local word, next_word = string.match(reason, '^(%a+): ([%w_.]+)')
  if word == 'failed' or word == 'stripe' then return word .. ' ' .. next_word end
  return (string.gsub(cut(string.match(reason, '^[^:(|]*'), 40), '%s+$', ''))
end

-- What a dead event died of: `handler|cause` for each handler that is dead, or the one of its own.
local function deaths_of(fields)
  local found, reason = {}, fields.reason or ''
  if string.sub(reason, 1, 11) == 'quarantined' then
    return {(string.match(reason, 'while (%S+) ran$') or '') .. '|quarantined'}
  end
  for name, value in pairs(fields) do
    if string.sub(name, 1, 2) == 'h:' and string.sub(value, 1, 5) == 'dead|' then
      local why = string.match(value, '^dead|[^|]*|[^|]*|[^|]*|([^|]*)') or ''
      found[#found + 1] = string.sub(name, 3) .. '|' .. cause_of(why)
    end
  end
  if #found == 0 then found[1] = '|' .. cause_of(reason) end
  return found
end

-- List a dead event by what it died of and by its session; `leave_dead` takes it out again, before its
-- record is changed.
local function list_dead(key, fields, died)
  if redis.call('ZADD', DEAD, died, key) == 1 then
    redis.call('RPUSH', DEAD_OF .. string.sub(fields.session, -2), key)
  end
  for _, death in ipairs(deaths_of(fields)) do
    if redis.call('ZADD', DEAD .. ':' .. death, died, key) == 1 then
      redis.call('HINCRBY', DEATHS, death, 1)
    end
  end
end

local function leave_dead(key, fields)
  redis.call('ZREM', DEAD, key)
  redis.call('LREM', DEAD_OF .. string.sub(fields.session, -2), 0, key)
  for _, death in ipairs(deaths_of(fields)) do
    if redis.call('ZREM', DEAD .. ':' .. death, key) == 1
      and redis.call('HINCRBY', DEATHS, death, -1) <= 0 then
      redis.call('HDEL', DEATHS, death)
    end
  end
end

-- The event that an id means, and its state: pending | dead | done, or nothing. A change that comes
-- in both forms has two ids, of which one leads to the other. Every script that is given an id begins
-- with this.
local function find(key)
  local fields, id = redis.call('HMGET', RECORD .. key, 'state', 'twin'), nil
  if fields[1] == 'twin' then
    id, key = key, fields[2]
    fields = redis.call('HMGET', RECORD .. key, 'state')
  end
  local state = fields[1] or (redis.call('EXISTS', DONE .. key) == 1 and 'done')
  if id and not state then
    redis.call('DEL', RECORD .. id) -- it led nowhere
    key = id
  end
  return key, state
end

-- What a script has to know of an event that is not done.
local function event_of(key, fields)
  return {
    key = key, token = fields.token or '', session = session_name(fields.account, fields.session),
    accepted = tonumber(fields.accepted), kind = fields.kind, twin = fields.twin,
    failed = fields.faults or fields.lapses or fields.ran, fields = fields,
  }
end

-- Whether a worker has an event now. One whose lease ran out is nobody's, until it is claimed again.
local function is_claimed(fields, now)
  local ends = tonumber(fields.lease)
  return ends and ends > now
end

-- An event that the claim with this token still owns; nil when it does not. A holder that is late owns
-- it until somebody else has had it, so that what it did is not lost.
local function held(key, token)
  local fields = record_of(key)
  if fields.state ~= 'pending' or fields.token ~= token or not fields.lease then return nil end
  return event_of(key, fields)
end

-- Have an id lead to the event that is worked on instead.
local function lead(from, to, is_done)
  redis.call('DEL', RECORD .. from)
  redis.call('ZREM', DUE, from)
  redis.call('HSET', RECORD .. from, 'state', 'twin', 'twin', to)
  -- It is kept for as long as that event, whose end sets the time, or for a while.
  if is_done or redis.call('HSETNX', RECORD .. to, 'twin', from) == 0 then
    redis.call('EXPIRE', RECORD .. from, KEEP)
  end
end

-- How a handler fared, as names and values of fields of the record; nothing for nothing. The attempt
-- before it, which failed, is not forgotten.
local function noted(event, now, handler, status, attempts, delay, reason, since)
  if not handler then return end
  local parts = {status, attempts, int(now - event.accepted), '', (string.gsub(reason, '|', '/'))}
  if status == 'retry' then
    parts[4] = int(now + tonumber(delay))
    if since ~= '' then parts[6] = since end
  end
  local result, fields = table.concat(parts, '|'), event.fields
  local before = string.match(fields['h:' .. handler] or '', '^%a+|(%d+)')
  local trail = before and before ~= attempts and failed(fields, handler)
  if trail then return 'h:' .. handler, result, 'trail', trail end
  return 'h:' .. handler, result
end

-- Free the session of an event, and wake the event that has waited for it longest.
local function let_go(event, now)
  local lock = SESSION .. event.session
  local owner = redis.call('GETDEL', lock)
  if owner ~= event.key .. ' ' .. event.token then
    -- The lease had run out, and another event of the session went ahead.
    if owner then redis.call('SET', lock, owner, 'PX', LEASE) end
    return
  end
  local waiter = redis.call('LPOP', WAITING .. event.session)
  if not waiter then return end
  local state, lease = unpack(redis.call('HMGET', RECORD .. waiter, 'state', 'lease'))
  if state == 'pending' and not is_claimed({lease = lease}, now) then
    redis.call('HDEL', RECORD .. waiter, 'not_before')
    wake(waiter, now)
  end
end

-- Remember what handlers last heard of a session: by months, and many sessions in one key, which
-- takes less than half of what a key for each took (measured).
local function heard(event, now, how)
  local last = LAST .. string.sub(stamp(now), 1, 7) .. ':' .. string.sub(event.session, -2)
  if redis.call(how or 'HSET', last, event.session, event.kind) == 1 then
    redis.call('EXPIRE', last, KEEP_LAST)
  end
end

-- Outcomes of events that ended without their handlers' having had their turn.
local NOTHING_RAN = {[''] = true, discarded = true, ended = true, as_done = true}

-- Count how an event ended, under the day on which Stripe made it: once, also when it is replayed, and
-- a change in two forms once.
local function count_outcome(fields)
  if fields.counted or fields.outcome == 'twin' or NOTHING_RAN[fields.outcome] then return end
  local day = OUTCOMES .. int(math.floor(tonumber(fields.created) / 86400))
  local name = table.concat({fields.kind, fields.outcome, string.match(fields.reason, '^[%w_]*$') or ''}, '|')
  if redis.call('HINCRBY', day, name, 1) == 1 then redis.call('EXPIRE', day, KEEP_OUTCOMES) end
end

-- End an event. With a handler: how it fared goes into the record. Without an outcome, since nothing
-- ran, that of an earlier end stays.
local function settle(event, state, outcome, reason, now, ...)
  let_go(event, now)
  redis.call('ZREM', DUE, event.key)
  local record, fields, results = RECORD .. event.key, event.fields, {...}
  if outcome == '' then outcome = fields.outcome or '' end
  fields.outcome, fields.reason = outcome, reason
  for i = 1, #results, 2 do fields[results[i]] = results[i + 1] end
  keep_listed(event.key, event.accepted, fields.session, now)
  if state == 'dead' then
    redis.call('HDEL', record, 'lease', 'wake', 'faults', 'lapses', 'ran', 'asked')
    redis.call('HSET', record, 'state', state, 'settled', int(now), 'outcome', outcome,
      'reason', reason, ...)
    list_dead(event.key, fields, int(now))
    return
  end
  count_outcome(fields)
  fields.took = int(now - event.accepted)
  redis.call('SET', DONE .. event.key, line_of(fields), 'EX', KEEP)
  redis.call('DEL', record)
  if outcome ~= 'superseded' then heard(event, now) end
  if event.twin then redis.call('EXPIRE', RECORD .. event.twin, KEEP) end
end

-- Take an event that nobody holds out of the list of those that wait for its session.
local function leave_line(key, fields)
  redis.call('LREM', WAITING .. session_name(fields.account, fields.session), 0, key)
end

-- Take an event from the worker that let its lease run out, if one did: what that one writes later is
-- refused. It is a suspect for good: whatever is written down of it meanwhile, a handler that kills may
-- have still to run.
local function take_from_dead(key, fields, now)
  if not fields.lease then return end
  let_go(event_of(key, fields), now)
  redis.call('HDEL', RECORD .. key, 'lease')
  redis.call('HSET', RECORD .. key, 'suspect', '1')
  fields.lease, fields.suspect = nil, '1'
end

-- Begin with an event anew. `which`: 'dead' re-runs the handlers that died or wait for a retry, 'all'
-- every one, anything else the handler of that name. Answers whether it did: not where there is no such
-- handler. What died, or was ended, before its handlers had their turn has no need of one for 'dead',
-- and what is settled none for 'all'. `who` asked for it.
local function reopen(key, which, now, who)
  local line = redis.call('GET', DONE .. key)
  local fields = line and fields_of(line) or record_of(key)
  local was_dead, outcome = fields.state == 'dead', fields.outcome or ''
  local no_outcome = NOTHING_RAN[outcome]
  local is_cut_short = was_dead or (no_outcome and outcome ~= '')
  local deaths = was_dead and {session = fields.session, reason = fields.reason}
  if line and not no_outcome then fields.counted = 1 end
  if no_outcome then fields.outcome = nil end
  local list, again = {}, {}
  local left_out = which == 'dead' and is_cut_short or which == 'all' and fields.state ~= 'pending'
  fields.reason, fields.settled, fields.took, fields.not_before = nil
  fields.faults, fields.lapses, fields.ran, fields.asked = nil
  fields.state, fields.reopened = 'pending', int(now)
  for name, value in pairs(fields) do
    if string.sub(name, 1, 2) == 'h:' then
      if deaths then deaths[name] = value end
      if which == 'all' or 'h:' .. which == name or (which == 'dead'
        and (string.sub(value, 1, 5) == 'dead|' or string.sub(value, 1, 6) == 'retry|')) then
        again[#again + 1] = string.sub(name, 3)
      end
    end
  end
  if #again == 0 and not left_out then return false end
  take_from_dead(key, fields, now)
  table.sort(again)
  for _, handler in ipairs(again) do
    fields.trail = failed(fields, handler)
    fields['h:' .. handler] = nil
  end
  fields.acts = acted(fields, now, 'replay', who, which)
  for name, value in pairs(fields) do list[#list + 1], list[#list + 2] = name, value end
  leave_line(key, fields)
  if deaths then leave_dead(key, deaths) end
  redis.call('DEL', RECORD .. key, DONE .. key)
  redis.call('HSET', RECORD .. key, unpack(list))
  wake(key, now)
  return true
end

-- Claim an event: a lease, and a token that is higher at each claim. A holder that lost
-- its lease without noticing (a stopped process, a cut network) is refused by its old token.
-- Answers {state} (done | dead), or {gone | leased | early | busy}, or
-- {claimed | quarantined, key, token, now, the whole record: name, value, ...}; and of one that is
-- claimed the record as a table.
local function claim(id, now)
  local key, fields, list = id, record_of(id)
  if fields.state ~= 'pending' then
    local state
    key, state = find(id)
    if state ~= 'pending' then return {state or 'gone'} end
    fields, list = record_of(key)
  end
  local record = RECORD .. key
  local not_before = tonumber(fields.not_before)
  if is_claimed(fields, now) then return {'leased'} end
  -- A surplus wake-up must not run an event before its retry is due.
  if not_before and not_before > now then return {'early'} end
  local pause = fields.account and redis.call('GET', PAUSE .. ':' .. fields.account)
  local pause_ends = pause and tonumber(string.match(pause, '^%d+'))
  if pause_ends and pause_ends > now then
    local again = int(math.min(pause_ends, now + HORIZON))
    redis.call('HSET', record, 'not_before', again,
      'reason', 'account paused: ' .. string.match(pause, '^%d+ ?(.*)$'))
    redis.call('ZADD', DUE, again, key)
    return {'held'}
  end

  -- A lapse: the worker died. An event that does so repeatedly is quarantined before it stops
  -- all workers.
  local name = session_name(fields.account, fields.session)
  if fields.lease then
    local event = event_of(key, fields)
    local lapses = redis.call('HINCRBY', record, 'lapses', 1)
    if lapses >= MAX_LAPSES then
      settle(event, 'dead', '',
        fields.ran and 'quarantined: its worker died while ' .. fields.ran .. ' ran' or 'quarantined',
        now)
      return {'quarantined', key, event.token, int(now), list}
    end
    take_from_dead(key, fields, now)
    list[#list + 1], list[#list + 2] = 'suspect', '1'
    fields.lapses = tostring(lapses)
    list[#list + 1], list[#list + 2] = 'lapses', fields.lapses -- the last one of a name counts
  end

  local token = int((fields.token or 0) + 1)
  local lock, owner = SESSION .. name, key .. ' ' .. token
  local holder = redis.call('SET', lock, owner, 'NX', 'GET', 'PX', LEASE)
  if holder and string.match(holder, '^%S+') ~= key then
    redis.call('HSET', record, 'not_before', int(now + BUSY))
    redis.call('ZADD', DUE, int(now + BUSY), key)
    if not redis.call('LPOS', WAITING .. name, key) then
      redis.call('RPUSH', WAITING .. name, key)
    end
    return {'busy'}
  end
  if holder then redis.call('SET', lock, owner, 'PX', LEASE) end

  redis.call('HSET', record, 'token', token, 'lease', int(now + LEASE))
  redis.call('ZADD', DUE, int(now + LEASE), key)
  if not_before then -- it may have waited for its session
    redis.call('HDEL', record, 'not_before')
    leave_line(key, fields)
  end
  return {'claimed', key, token, int(now), list}, fields
end
