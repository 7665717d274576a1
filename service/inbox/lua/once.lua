-- Stands behind every script, which is the body of `run` and takes its arguments without the nonce.
-- Whoever did not get the reply asks again with the same nonce, and is answered what was answered the
-- first time; nothing else happens. The second value a script returns says that it changed nothing:
-- then the answer is not kept, since asking again changes nothing either.
local nonce = table.remove(ARGV, 1)
local kept = redis.call('MGET', ANSWER .. nonce, CLOCK)
if kept[1] then return cmsgpack.unpack(kept[1]) end
ahead = kept[2] and tonumber(string.match(kept[2], '^%d+')) or 0
local answer, changed_nothing = run(ARGV)
if not changed_nothing then
  redis.call('SET', ANSWER .. nonce, cmsgpack.pack(answer), 'PX', KEEP_ANSWER)
end
return answer
