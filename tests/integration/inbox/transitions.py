"""Which transitions an event of the inbox can make one after the other.

A transition is what changes the state of one event. What is refused is none, nor is what changes
only the queue: a wake-up that gets lost, a pause.
"""

from __future__ import annotations

HANDLER_TRANSITIONS = {"done": "succeeded", "retry": "failed", "dead": "died"}
"""What is noted when this status of a handler is saved."""

# Nobody has it, or the one who has it is late.
FREE = "claimed busy woken postponed retried discarded"
# A worker has it, also one that is late: `failed` waits for another attempt, `died` for none, and
# `noted` says which handler ran when the worker died.
HELD = "renewed succeeded failed died noted released delayed done dead"

# `busy`: another event of its session is worked on. `freed`: that one let the session go, and this
# one is woken. `woken` and `postponed` by the sweep. `released`: to be claimed at once, `delayed`:
# later. `lapsed`: its lease ran out. `reopened`: replayed because Stripe delivered it again.
# A change in two forms: `single` has no other form, to `first` another id leads, and `second` is
# such an id.
FOLLOWERS = {
    "unknown": "accepted adopted second",
    "accepted": f"{FREE} first second",
    "claimed": f"{HELD} lapsed single first second",
    "renewed": f"{HELD} lapsed single first second",
    "lapsed": f"{HELD} {FREE} quarantined replayed single first second",
    # Whether it is held does not change with these.
    "woken": f"{HELD} {FREE} freed quarantined replayed single first second",
    "postponed": f"{HELD} {FREE} freed quarantined replayed single first second",
    "noted": f"{HELD} {FREE} lapsed quarantined replayed single first second",
    "single": f"{HELD} {FREE} lapsed quarantined replayed second",
    "first": f"{HELD} {FREE} lapsed freed quarantined replayed reopened",
    # These begin to count the lapses anew.
    "succeeded": f"{HELD} {FREE} lapsed replayed single first second",
    "failed": f"{HELD} {FREE} lapsed replayed single first second",
    "died": f"{HELD} {FREE} lapsed replayed single first second",
    # What is pending is replayed only when a handler had its turn.
    "busy": f"{FREE} freed replayed first second",
    "freed": f"{FREE} replayed first second",
    "retried": f"{FREE} replayed first second",
    "replayed": f"{FREE} replayed first second",
    # It has been claimed, so that no other id takes its place any more.
    "released": f"{FREE} replayed first",
    "delayed": f"{FREE} replayed first",
    "reopened": f"{FREE} replayed first",
    "dead": "replayed reopened discarded first",
    "quarantined": "replayed reopened discarded first",
    "done": "replayed",
    "discarded": "replayed",
    "adopted": "replayed",
    "second": "",
}
"""What may follow each transition of an event; `unknown` is what it is before the first one."""

POSSIBLE_PAIRS = {(before, after) for before, line in FOLLOWERS.items() for after in line.split()}

# They were found by a search for short ways to pairs that no earlier walk goes through.
WALKS = [
    "accepted claimed renewed renewed succeeded renewed failed renewed died renewed noted "
    "renewed released claimed succeeded succeeded failed succeeded died succeeded noted "
    "succeeded released busy claimed failed failed died failed noted failed released woken "
    "claimed died died noted died released postponed claimed noted noted released retried "
    "claimed released replayed claimed delayed claimed done",
    "adopted replayed busy busy woken busy postponed busy retried busy discarded replayed woken "
    "woken postponed woken retried woken discarded replayed postponed postponed retried "
    "postponed discarded replayed retried retried discarded replayed discarded replayed claimed "
    "dead replayed claimed single renewed delayed busy freed claimed lapsed claimed renewed "
    "done replayed claimed renewed dead reopened claimed",
    "accepted busy woken freed busy postponed freed woken first claimed renewed lapsed busy "
    "freed postponed claimed succeeded delayed woken replayed claimed succeeded done replayed "
    "claimed succeeded dead discarded replayed claimed succeeded lapsed woken renewed failed "
    "delayed postponed replayed replayed claimed failed done replayed claimed failed dead "
    "reopened busy freed retried",
    "accepted woken first busy freed discarded replayed claimed failed lapsed postponed renewed "
    "died delayed retried replayed busy replayed claimed died done replayed claimed died dead "
    "reopened woken claimed died lapsed retried claimed noted delayed replayed claimed noted "
    "done replayed claimed noted dead reopened postponed claimed noted lapsed discarded "
    "replayed claimed released discarded",
    "accepted postponed first woken claimed delayed discarded replayed claimed lapsed renewed "
    "lapsed succeeded claimed lapsed replayed claimed lapsed failed claimed lapsed died claimed "
    "lapsed noted claimed lapsed quarantined replayed claimed lapsed released claimed lapsed "
    "delayed claimed lapsed done replayed claimed lapsed dead reopened retried claimed dead "
    "reopened discarded",
    "accepted retried first postponed claimed lapsed woken succeeded busy freed replayed "
    "claimed lapsed woken failed busy claimed lapsed woken died busy claimed lapsed woken noted "
    "busy claimed lapsed quarantined reopened claimed lapsed woken released claimed lapsed "
    "woken delayed claimed lapsed woken done replayed claimed lapsed woken dead replayed "
    "claimed lapsed postponed succeeded",
    "accepted discarded replayed first retried claimed lapsed postponed failed woken postponed "
    "died woken postponed noted woken postponed released claimed lapsed postponed delayed "
    "claimed lapsed postponed done replayed claimed lapsed postponed dead replayed claimed "
    "lapsed succeeded woken succeeded postponed succeeded retried claimed dead reopened "
    "replayed claimed lapsed succeeded replayed claimed lapsed succeeded discarded",
    "accepted first discarded replayed claimed lapsed failed postponed failed retried claimed "
    "lapsed failed replayed claimed lapsed failed discarded replayed claimed lapsed died "
    "postponed died retried claimed lapsed died replayed claimed lapsed died discarded replayed "
    "claimed lapsed noted postponed noted retried claimed lapsed noted replayed claimed lapsed "
    "noted discarded",
    "accepted claimed renewed single succeeded second",
    "accepted claimed succeeded single failed second",
    "accepted claimed failed single died second",
    "accepted claimed died single noted second",
    "accepted claimed noted single released claimed second",
    "accepted claimed single delayed claimed renewed second",
    "accepted claimed single done replayed claimed lapsed second",
    "accepted claimed single dead replayed claimed lapsed woken second",
    "accepted claimed single lapsed postponed second",
    "accepted claimed lapsed single claimed lapsed claimed lapsed quarantined discarded "
    "replayed claimed lapsed claimed lapsed claimed lapsed woken quarantined replayed claimed "
    "lapsed claimed lapsed claimed lapsed postponed quarantined replayed claimed lapsed claimed "
    "lapsed claimed lapsed noted quarantined",
    "accepted claimed first renewed",
    "accepted claimed first succeeded",
    "accepted claimed first failed",
    "accepted claimed first died",
    "accepted claimed first noted",
    "accepted claimed first released",
    "accepted claimed first delayed",
    "accepted claimed first done",
    "accepted claimed first dead",
    "accepted claimed first lapsed",
    "accepted busy first freed",
    "accepted claimed dead first replayed",
    "accepted claimed dead first reopened",
    "accepted claimed lapsed woken single busy",
    "accepted claimed lapsed postponed single woken",
    "accepted claimed lapsed single postponed",
    "accepted claimed lapsed single retried",
    "accepted claimed lapsed single discarded",
    "accepted claimed succeeded lapsed single replayed",
    "accepted claimed lapsed claimed lapsed claimed lapsed single quarantined",
    "accepted claimed lapsed claimed lapsed claimed lapsed first quarantined",
    "accepted claimed renewed first",
    "accepted claimed succeeded first",
    "accepted claimed failed first",
    "accepted claimed died first",
    "accepted claimed noted first",
    "accepted claimed released first",
    "accepted claimed delayed first",
    "accepted busy freed first",
    "accepted claimed dead reopened first",
    "accepted claimed lapsed claimed lapsed claimed lapsed quarantined first",
    "second",
    "accepted second",
    "accepted busy second",
    "accepted retried second",
    "adopted replayed second",
    "accepted claimed single second",
    "accepted busy freed second",
]
"""Transitions of one event, one after the other, which go through all pairs."""
