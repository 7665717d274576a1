-- Stands behind every script but accept, which is the body of `run` and takes its arguments without
-- the nonce.
-- Whoever did not get the reply asks again with the same nonce, and is answered what was answered the
-- first time; nothing else happens. The second value a script returns says that it changed nothing:
-- then the answer is not kept, since asking again changes nothing either.
-- A nonce is a slot and a number that rises in it: whoever has a slot asks one thing at a time, so one
-- answer is kept for each slot, not for each nonce. (NFS 4.1 does the same: RFC 8881, 2.10.6.)
local slot, number = string.match(table.remove(ARGV, 1), '^(.+)%.(%d+)$')
local kept = redis.call('MGET', ANSWER .. slot, CLOCK)
if kept[1] then
  local last, answer = string.match(kept[1], '^(%d+) (.*)$')
  if last == number then return cmsgpack.unpack(answer) end
  -- Arrived so late that its caller has repeated it and used the slot for other calls since.
  if tonumber(last) > tonumber(number) then error({err = 'STALE this was asked before'}) end
end
read_clock(kept[2])
local answer, changed_nothing = run(ARGV)
if not changed_nothing then
  redis.call('SET', ANSWER .. slot, number .. ' ' .. cmsgpack.pack(answer), 'PX', KEEP_ANSWER)
end
return answer
