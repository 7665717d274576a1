"""Commands that try whether a Redis supports what the inbox needs. No I/O.

Accepting is tried with the real script and a fictitious event, which the same step removes, so
that no worker sees it. What else workers need is tried command by command.
"""

from __future__ import annotations

from identity_webhooks.event import Event
from service.inbox import keys
from service.inbox.pipeline import AcceptResult, Limits, Memory, Pipeline, Reply
from service.inbox.scripts import Scripts, pack_command, sources

_EVENT = Event("probe", "created", "snapshot", "vs_probe", 0, livemode=False)

# The number of the job is the last one given, as nothing else happens meanwhile. Where accepting
# was refused before that, no job has that name. A cluster of one shard lets a script use keys of
# many slots, but no single command: the last one tells it, after which Valkey 9 refuses all others.
_TRIAL = f"""
local function accept(ARGV)
{sources()["accept"]}
end
local done, answer = pcall(accept, ARGV)
local id = '{_EVENT.key}-' .. tostring(redis.pcall('GET', '{keys.SEQUENCE}'))
redis.pcall('LREM', '{keys.QUEUE_KEY}', -1, id)
local record, job = '{keys.RECORD}{_EVENT.key}', '{keys.JOB}' .. id
redis.pcall('DEL', record)
redis.pcall('DEL', job)
redis.pcall('ZREM', '{keys.DUE}', '{_EVENT.key}')
local hours = redis.pcall('ZRANGE', '{keys.HOURS}', -1, -1)
local hour = tonumber(hours[1])
if hour then
  local month = string.format('%.0f', math.floor(hour / {keys.HOURS_OF}))
  redis.pcall('LREM', '{keys.OF}' .. month .. ':be', -1, 'pro {_EVENT.key}')
  redis.pcall('LREM', '{keys.LOG}' .. hours[1], -1, '{_EVENT.key}')
  if redis.pcall('EXISTS', '{keys.LOG}' .. hours[1]) == 0 then
    redis.pcall('ZREM', '{keys.HOURS}', hours[1])
  end
end
local both = redis.pcall('DEL', record, job)
if done and type(both) == 'table' then done, answer = false, both end
if not done then error({{err = type(answer) == 'table' and answer.err or answer}}) end
return answer
"""

_KEY = keys.PROBE + ":"

COMMANDS: dict[str, tuple[str | int, ...]] = {
    "SET": (_KEY + "text", "1", "NX", "GET", "PX", 5000),
    "GET": (_KEY + "text",),
    "MGET": (_KEY + "text", keys.CLOCK),
    "EXISTS": (_KEY + "text",),
    "GETDEL": (_KEY + "text",),
    "INCR": (_KEY + "number",),
    "EXPIRE": (_KEY + "number", 5),
    "HSET": (_KEY + "hash", "a", "1"),
    "HSETNX": (_KEY + "hash", "a", "1"),
    "HMGET": (_KEY + "hash", "a"),
    "HGETALL": (_KEY + "hash",),
    "HINCRBY": (_KEY + "hash", "a", 1),
    "HDEL": (_KEY + "hash", "a"),
    "ZADD": (_KEY + "sorted", 1, "a"),
    "ZCARD": (_KEY + "sorted",),
    "ZRANGE": (_KEY + "sorted", "-inf", "1", "BYSCORE", "LIMIT", 0, 1),
    "ZREM": (_KEY + "sorted", "a"),
    "RPUSH": (_KEY + "list", "a"),
    "LPOS": (_KEY + "list", "a"),
    "LINDEX": (_KEY + "list", 0),
    "LREM": (_KEY + "list", 0, "b"),
    "LPOP": (_KEY + "list",),
    "SADD": ("rq:queues", keys.QUEUE_KEY),
    "TIME": (),
    # From the head to the head, as workers wait for a wake-up: it changes nothing.
    "BLMOVE": (keys.QUEUE_KEY, keys.QUEUE_KEY, "LEFT", "LEFT", "0.001"),
    "DEL": tuple(_KEY + name for name in ("text", "number", "hash", "sorted", "list")),
}
"""Every command that scripts run, and the one with which workers wait, with arguments that do no
harm: `SADD` writes what is always there. In an order that leaves nothing behind."""


class Probe:
    """Accepts a test event, and removes it in the same step."""

    def __init__(self) -> None:
        self.scripts = Scripts({"accept": _TRIAL})
        """What has to be loaded before."""
        self._memory = Memory()

    def pipeline(self) -> tuple[Pipeline, Reply[AcceptResult]]:
        """Return a pipeline with the one command, and its reply."""
        # However full the inbox is: that is another question.
        pipe = Pipeline(self.scripts, Limits(pending=1 << 31), self._memory)
        return pipe, pipe.accept(_EVENT)


def commands() -> tuple[tuple[str, ...], bytes]:
    """Return the names of `COMMANDS`, in order, and all of them as Redis reads them."""
    return tuple(COMMANDS), b"".join(pack_command(name, *args) for name, args in COMMANDS.items())
