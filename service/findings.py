"""Requirements on Redis, and what is known about the configured one.

Each requirement ends in a `Finding`: good, bad, or unknown, where neither INFO nor another command
tells. Unknown does not pass: the operator vouches for it by name (`REDIS_VOUCH_FOR`), or
Redis is refused. Start, `/readyz`, deliveries and `python -m service check` use the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import redis

from service import connection
from service.inbox import AcceptResult, Reply, memory_is_short, pending_limit, probe
from service.inbox.connections import Ask
from service.inbox.inbox import EVENT_SIZE, MEMORY_LIMIT
from service.inbox.record import text_of
from service.inbox.scripts import pack_command, sources
from service.redis_errors import CAUSES, Cause, UnsafeRedis, explain
from service.settings import VOUCHABLE, Settings

PERIOD = 5.0
"""Seconds between two looks of a web process at its Redis."""

OLDEST = {"Redis": (7, 0), "Valkey": (7, 2)}
"""Oldest supported versions. Scripts declare by flags that they run on a full Redis: new in 7.0
(https://redis.io/docs/latest/develop/programmability/eval-intro/). Valkey began with 7.2."""

INBOX_IS_FULL = "the inbox is at its limit (INBOX_LIMIT): are the workers running?"
"""The one reason not to accept that is not about Redis."""

MEMORY_IS_SHORT = (
    "Redis is above four fifths of its memory: give it more (maxmemory). It does not drain by"
    " itself, as done events are kept for RETENTION_DAYS"
)
"""The other limit: nothing may be pending at all."""

State = Literal["good", "bad", "unknown"]
Info = Mapping[str, str]
Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one requirement.

    Attributes:
        name: what it is about; one of `VOUCHABLE` if the operator may vouch for it.
        state: good, bad or unknown.
        text: what it is, why it matters and what to do; for a good one only what it is.
        passes: whether the state is temporary, such as full memory: it prevents no start.
        vouched: whether the operator vouches for it.
    """

    name: str
    state: State
    text: str
    passes: bool = False
    vouched: bool = False

    @property
    def is_fault(self) -> bool:
        """Whether it prevents accepting events. What cannot be vouched for was tried instead."""
        if self.state == "unknown" and self.name not in VOUCHABLE:
            return False
        return self.state != "good" and not self.vouched

    @property
    def may_be_vouched_for(self) -> bool:
        """Whether the operator may override it. That Redis is a replica cannot be overridden."""
        lossy = self.name in {"append-only", "eviction"}
        return self.name in VOUCHABLE and (lossy or self.state == "unknown")


# --- what Redis says ------------------------------------------------------------------------------


def parse_info(answer: Any) -> dict[str, str]:
    """Read the answer to INFO as it comes from a connection, or nothing from a refusal."""
    if isinstance(answer, Exception):
        return {}
    text = answer.decode() if isinstance(answer, bytes) else str(answer)
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


def _of_config(name: str) -> Callable[[Any], str | None]:
    def read(answer: Any) -> str | None:
        flat = chain.from_iterable(answer.items()) if isinstance(answer, dict) else answer
        words = [text_of(each) for each in flat]
        return dict(zip(words[::2], words[1::2], strict=True)).get(name)

    return read


def _yes_or_no(answer: Any) -> str | None:
    return {"yes": "1", "no": "0"}.get(_of_config("appendonly")(answer) or "")


def _of_waitaof(answer: Any) -> str | None:
    if isinstance(answer, Exception):
        return "0" if "appendonly is disabled" in str(answer) else None
    return "1"


def _of_role(answer: Any) -> str | None:
    return text_of(answer[0])


# For a field that INFO lacks: the command that reports it, and how to read the reply.
_OTHER_WAYS: dict[str, tuple[tuple[Command, Callable[[Any], str | None]], ...]] = {
    "aof_enabled": (
        (("CONFIG", "GET", "appendonly"), _yes_or_no),
        (("WAITAOF", "1", "0", "1"), _of_waitaof),
    ),
    "maxmemory_policy": ((("CONFIG", "GET", "maxmemory-policy"), _of_config("maxmemory-policy")),),
    "role": ((("ROLE",), _of_role),),
}


def questions(info: Info) -> list[Command]:
    """Return the commands to ask for what INFO does not say; none where it says all."""
    silent = [ways for name, ways in _OTHER_WAYS.items() if not info.get(name)]
    return [command for command, _ in chain.from_iterable(silent)]


def completed(info: Info, told: Mapping[Command, Any]) -> dict[str, str]:
    """Return INFO with what the answers to `questions` add; an answer may be a refusal."""
    full = dict(info)
    for name, ways in _OTHER_WAYS.items():
        for command, read in ways:
            if not full.get(name) and command in told:
                # An answer that is none, or of another shape than Redis', tells nothing.
                with suppress(TypeError, ValueError, AttributeError, IndexError, KeyError):
                    full[name] = read(told[command]) or ""
    return full


# --- what that means ------------------------------------------------------------------------------


def judge(info: Info, settings: Settings, *, accepting: Exception | None) -> list[Finding]:
    """Return a finding for each requirement.

    Args:
        info: what Redis says of itself (`completed`).
        settings: with what the operator vouches for.
        accepting: why the test event was not accepted; None if it was.
    """
    if of_another_kind := _of_another_kind(info):
        return [of_another_kind]
    found = [
        _version(info),
        _cluster(info),
        _primary(info),
        _append_only(info),
        _eviction(info),
        _memory(info),
        _inbox(info, settings),
        _connections(info, settings),
        _accepting(accepting),
    ]
    vouched = settings.vouched
    return [replace(f, vouched=f.name in vouched and f.may_be_vouched_for) for f in found]


def _version(info: Info) -> Finding:
    for name, field in (("Valkey", "valkey_version"), ("Redis", "redis_version")):
        if found := re.match(r"(\d+)\.(\d+)[\d.]*", info.get(field, "")):
            if (int(found[1]), int(found[2])) >= OLDEST[name]:
                return Finding("version", "good", f"{name} {found[0]}")
            least = " or ".join(f"{each} {a}.{b}" for each, (a, b) in OLDEST.items())
            text = f"{least} or newer is needed, this is {name} {found[0]}: choose a newer one"
            return Finding("version", "bad", text)
    return Finding("version", "unknown", "Redis does not report it: the commands were tried")


def _of_another_kind(info: Info) -> Finding | None:
    """Return the one finding on a server that cannot be used at all."""
    if "sentinel" in {info.get("redis_mode"), info.get("server_mode")}:
        text = "this is a Sentinel, which holds nothing: give REDIS_URL the address of the primary"
        return Finding("sentinel", "bad", text)
    if info.get("cluster_enabled") == "1":
        return Finding("cluster", "bad", CAUSES["CROSSSLOT"].hint)
    return None


def _cluster(info: Info) -> Finding:
    if info.get("cluster_enabled") == "0":
        return Finding("cluster", "good", "not a cluster")
    return Finding("cluster", "unknown", "Redis does not tell: it was tried")


def _primary(info: Info) -> Finding:
    match info.get("role"):
        case None | "":
            text = (
                "Redis does not tell whether it is the primary: a replica would lose what it is"
                " given. Look whether REDIS_URL has the primary's address"
            )
            return Finding("primary", "unknown", text)
        case "master":
            return Finding("primary", "good", "the primary")
    text = "this Redis is a read-only replica: give REDIS_URL the primary's address"
    return Finding("primary", "bad", text)


def _append_only(info: Info) -> Finding:
    match info.get("aof_enabled"):
        case "0":
            text = (
                "Redis writes no append-only file, so a restart loses accepted events:"
                " set `appendonly yes` (deploy/redis.conf), or choose a plan that persists"
            )
            return Finding("append-only", "bad", text)
        case "1":
            return Finding("append-only", "good", "writes an append-only file")
    text = (
        "Redis does not tell whether it writes an append-only file; without one a restart loses"
        " accepted events. Ask its provider"
    )
    return Finding("append-only", "unknown", text)


def _eviction(info: Info) -> Finding:
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        return Finding("eviction", "good", "evicts no keys")
    if policy:
        text = (
            f"Redis evicts keys when it is full (maxmemory-policy {policy}),"
            " accepted events among them: set `maxmemory-policy noeviction`"
        )
        return Finding("eviction", "bad", text)
    text = (
        "Redis does not tell what it does when it is full (maxmemory-policy); only `noeviction`"
        " keeps accepted events. Ask its provider"
    )
    return Finding("eviction", "unknown", text)


def _memory(info: Info) -> Finding:
    used, limit = info.get("used_memory", ""), info.get("maxmemory", "")
    if memory_is_short(info):
        return Finding("memory", "bad", MEMORY_IS_SHORT, passes=True)
    if used.isdigit() and limit.isdigit():
        return Finding("memory", "good", _room(int(used), int(limit)))
    text = (
        "Redis does not tell how full it is (used_memory, maxmemory), so events are accepted until"
        " it refuses them. Watch its memory, and set INBOX_LIMIT to what fits"
    )
    return Finding("memory", "unknown", text)


def _room(used: int, limit: int) -> str:
    if not limit:
        return (
            f"{used >> 20} MB in use, of no limit (maxmemory): INBOX_LIMIT has to fit the machine"
        )
    events = int((limit * MEMORY_LIMIT - used) / EVENT_SIZE)
    return f"{used >> 20} MB in use of {limit >> 20} MB: room for about {events:,} events"


def inbox_limit(info: Info, settings: Settings) -> int:
    """Return the pending events above which no new one is accepted: as set, or as fits Redis."""
    return settings.inbox_limit or pending_limit(info)


def _inbox(info: Info, settings: Settings) -> Finding:
    source = (
        "INBOX_LIMIT"
        if settings.inbox_limit
        else "as fits its maxmemory; INBOX_LIMIT sets another number"
        if info.get("maxmemory", "") not in {"", "0"}
        else "without a maxmemory to go by; INBOX_LIMIT sets another number"
    )
    text = f"takes up to {inbox_limit(info, settings):,} pending events ({source})"
    return Finding("inbox", "good", text)


def _connections(info: Info, settings: Settings) -> Finding:
    used, limit = info.get("connected_clients", ""), info.get("maxclients", "")
    if not (used.isdigit() and limit.isdigit()):
        return Finding("connections", "unknown", "Redis does not tell how many it takes")
    fit = connection.workers_that_fit(
        int(limit), settings.web_concurrency, settings.worker_concurrency
    )
    said = (
        f"room for one web service and {fit} workers"
        if fit
        else (
            "too few for one web service and a worker: choose a larger plan, or lower"
            " WEB_CONCURRENCY or WORKER_CONCURRENCY"
        )
    )
    return Finding("connections", "good", f"{used} of {limit} in use: {said}")


def _accepting(error: Exception | None) -> Finding:
    if error is None:
        return Finding("accepting", "good", "takes events in")
    cause = explain(error)
    text = f"Redis cannot take events in: {cause}"
    return Finding("accepting", "bad", text, passes=not cause.lasting)


# --- looking --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """INFO, the replies to further questions, and the findings drawn from both."""

    info: Info
    asked: list[Command]
    found: list[Finding]


def look(ask: Ask, settings: Settings, *, for_workers: bool = False) -> Look:
    """Ask Redis what it is, and try to accept an event; or also all that workers need.

    Nothing is tried on a server of another kind: in a cluster it could not be taken out again.
    May raise `redis.RedisError`: Redis cannot be reached.
    """
    trial = probe.Probe()
    # One with flags shows whether this Redis knows them.
    loads = [trial.scripts.sources["accept"], sources()["claim"]]
    commands = b"".join(pack_command("SCRIPT", "LOAD", each) for each in loads)
    *loaded, answer = ask(commands + pack_command("INFO"), len(loads) + 1)
    refused = next((each for each in loaded if isinstance(each, Exception)), None)
    if cannot_be_asked(answer):
        raise answer
    info = parse_info(answer)
    if of_another_kind := _of_another_kind(info):
        return Look(info, [], [of_another_kind])
    asked = questions(info)
    pipe, reply = trial.pipeline()
    commands = b"".join(pack_command(*each) for each in asked)
    *answers, last = ask(commands + pipe.pack(), len(asked) + 1)
    pipe.set_replies([refused or last])
    info = completed(info, dict(zip(asked, answers, strict=True)))
    found = judge(info, settings, accepting=refusal_of(reply))
    return Look(info, asked, found + (look_for_workers(ask) if for_workers else []))


def cannot_be_asked(answer: Any) -> bool:
    """Whether the answer to INFO is a trouble that passes, and not that this user may not ask."""
    return isinstance(answer, Exception) and not explain(answer).lasting


def refusal_of(reply: Reply[AcceptResult]) -> redis.RedisError | None:
    """Return why a trial was refused, or None."""
    try:
        reply.result()
    except redis.RedisError as error:
        return error
    return None


def look_for_workers(ask: Ask) -> list[Finding]:
    """Try every script and command that workers need; a finding for what does not work."""
    names, packed = probe.commands()
    replies = dict(zip(names, ask(packed, len(names)), strict=True))
    found = sources()
    loads = b"".join(pack_command("SCRIPT", "LOAD", source) for source in found.values())
    refused = [each for each in ask(loads, len(found)) if isinstance(each, Exception)]
    causes: dict[str, tuple[Cause, list[str]]] = {}
    for name, error in [*replies.items(), *(("SCRIPT", each) for each in refused)]:
        if isinstance(error, Exception) and (cause := explain(error)).lasting:
            causes.setdefault(cause.hint, (cause, []))[1].append(name)
    return [
        Finding("commands", "bad", f"{', '.join(dict.fromkeys(names))}: {cause}")
        for cause, names in causes.values()
    ] or [Finding("commands", "good", "knows the commands that workers need")]


def faults(found: Iterable[Finding]) -> list[str]:
    """Return why no event would be accepted now, a sentence each."""
    return [each.text for each in found if each.is_fault]


def require(found: Iterable[Finding]) -> None:
    """Refuse a Redis for its faults, but not for what passes.

    Raises:
        UnsafeRedis: with every fault, and what to write to vouch for what may be vouched for.
    """
    lasting = [each for each in found if each.is_fault and not each.passes]
    if not lasting:
        return
    names = ",".join(each.name for each in lasting if each.may_be_vouched_for)
    lines = [each.text for each in lasting]
    if names:
        lines.append(f"(or vouch for it that no event gets lost: REDIS_VOUCH_FOR={names})")
    raise UnsafeRedis("\n".join(lines))


def warnings(found: Iterable[Finding], settings: Settings) -> list[str]:
    """Return what the operator vouches for, and what to write in place of an older setting."""
    vouched = [each for each in found if each.vouched and each.state != "good"]
    lines = [f"vouched for ({each.name}): {each.text}" for each in vouched]
    if settings.accept_redis_loss:
        names = ",".join(each.name for each in vouched)
        instead = f"write REDIS_VOUCH_FOR={names} in its place" if names else "remove it"
        lines.append(f"ACCEPT_REDIS_LOSS is deprecated, as it drops all checks: {instead}")
    return lines
