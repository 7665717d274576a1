-- List events that are kept and were taken in before there were lists, or by an older release.
-- ARGV   keys
-- Answers how many were missing in a list.
local function lacks(list, entry) return not redis.call('LPOS', list, entry) end
local missing = 0
for _, key in ipairs(ARGV) do
  local line = redis.call('GET', DONE .. key)
  local fields = line and fields_of(line) or record_of(key)
  if fields.accepted then
    local hour, list, entry = places(key, tonumber(fields.accepted), fields.session)
    local by_hour, by_session = lacks(LOG .. hour, key), lacks(list, entry)
    local by_death = fields.state == 'dead' and lacks(DEAD_OF .. string.sub(fields.session, -2), key)
    if by_hour then list_by_hour(key, hour) end
    if by_session then list_by_session(list, entry) end
    if by_death then
      redis.call('ZREM', DEAD, key)
      list_dead(key, fields, fields.settled)
    end
    if by_hour or by_session or by_death then missing = missing + 1 end
  end
end
return missing, missing == 0
