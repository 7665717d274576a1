"""Every Redis key of the service, and the durations of the inbox. No other module names a key.

=========================== ====== ======= ===================================================
key                         type   TTL     meaning
=========================== ====== ======= ===================================================
iw:evt:<event key>          hash   -       the record of an event until it is done
iw:done:<event key>         string 35 d    what is kept of it then, in one line
iw:due                      zset   -       pending events by the moment to look at them again
iw:dead                     zset   -       dead events by time of death
iw:dead:<handler>|<cause>   zset   -       those of them in which this handler died of this cause;
                                           no handler where none caused it
iw:deaths                   hash   -       <handler>|<cause> -> how many are dead of it
iw:dead-of:<xx>             list   -       dead events whose session ends in <xx>
iw:log:<hour>               list   36 d    events accepted in that hour, in that order
iw:hours                    zset   -       the hours of these lists
iw:of:<month>:<xx>          list   66 d    "<three characters of its session> <event key>" of the
                                           events whose session ends in <xx>; a month is 30 days
iw:listed                   string -       `all` once every event is in these lists; before that,
                                           when those of an older release were listed (unix s)
iw:audit                    list   -       actions of people: the last thousand, a line each
iw:outcomes:<day>           hash   40 d    <kind>|<outcome>|<reason> -> events of that day (UTC)
                                           that handlers were through with
iw:console:session:<hash>   string 12 h    who is logged in to the console by this cookie
iw:console:failed:<name>    string 10 min  how often somebody tried to log in with this name
iw:bulk:<id>                hash   1 d     how far an action of the console on many events is
iw:bulk:<id>:keys           list   1 d     the events that it is still to be done with, and which
                                           of their handlers run again
iw:bulk:<id>:step           string 10 s    the lock of a step of it
iw:bulks                    list   1 d     the last of these actions
iw:handlers                 hash   -       handler -> when a worker last started with it (unix s)
iw:session:<account>:<vs>   string lease   "<event key> <token>": who works on this session
iw:waiting:<account>:<vs>   list   -       events waiting for this session, oldest first
iw:last:<month>:<xx>        hash   400 d   <account>:<vs> -> kind of the last event of this session
                                           that handlers heard in that month; <vs> ends in <xx>
iw:pause                    string itself  until when no event is claimed (ms), and why
iw:pause:<account>          string itself  the same for the events of one account
iw:turn:<task>              string period  until when the task is one process's (ms)
iw:clock                    string -       how far the inbox' clock is ahead of Redis' (ms), and a
                                           recent moment by it
iw:watermark                int    -       since when reconciliation has to look (unix seconds)
iw:accounts                 zset   -       the same for each connected account that an event came
                                           from; 0 while it was not looked through yet
iw:answer:<slot>            string 5 s     number and answer of the last script asked in this slot
iw:budget                   int    5 s     until when the rate of API calls is used up (ms)
iw:seq                      int    -       number of the last wake-up
iw:processes                hash   -       <id> -> when a process last reported, and what
                                           (service/processes.py); 10 min after that
iw:seen                     hash   -       <series> -> when it was last counted (ms): deliveries,
                                           refusals, signing secrets, missed events
                                           (service/metrics.py)
iw:reconciled               hash   -       <account>, '' for one's own -> how the last pass ended
iw:probe:<type>             any    -       written and deleted by the check of a worker that starts
rq:job:<event key>-<number> hash   -       RQ's job, one per wake-up
rq:queue:identity           list   -       RQ's queue
=========================== ====== ======= ===================================================

Fields of a record (`iw:evt:<event key>`):

=========== ====================================================================================
state       pending | dead; `twin` where this is only another id of an event (TTL 35 d once done)
kind form session created livemode account    the event (service/event.py); its id ends the key
accepted    when it was accepted; `reopened` when it was last put back
twin        the key of the same change in its other form (the event worked on, for a `twin`); empty
            once it is known that there is none
wake        number of its last wake-up
asked       nonce of the call that accepted it; absent once it was replayed or died
lease       until when it is claimed; absent once it was given back. After that moment nobody has it
token       fencing token of the last claim
not_before  no claim before this moment
faults      releases for a fault of ours since the last progress
lapses      leases that ran out since the last progress
suspect     1 once a lease ran out: a handler of it may have killed the worker
ran         which handler ran when the last process died that held the event
outcome     the outcome handlers got: verified, needs_input, ...
reason      why it waits, why it died, or the code of last_error the handlers were told
settled     when it was finished
h:<handler> status|attempts|ms since accepted|due again|reason|first failed at
trace       the `traceparent` of its delivery, where traces are made; not kept once it is done
counted     that its outcome was counted (`iw:outcomes:<day>`) before it was put back
trail       handler|attempt|ms since accepted|reason; of attempts that failed and were followed by
            another: the last few
acts        <ms> <what> <who> <handlers>; actions of people on it: the last few
=========== ====================================================================================

Invariant: a pending event is in `iw:due` exactly once, any other never.
"""

LEASE = 10.0
"""Seconds a claim lasts without a heartbeat: how long a killed worker's event waits."""

HORIZON = 60.0
"""Seconds until the sweep looks whether a wake-up got lost."""

BUSY_DELAY = 5.0
"""Seconds an event waits for another event of the same session, if nothing wakes it before."""

MAX_LAPSES = 3
"""Claims in a row that end with the worker's death before an event is quarantined
(the rule of Sidekiq's super_fetch)."""

KEEP = 35 * 86_400
"""Seconds a done record is kept, where RETENTION_DAYS is not set. Stripe lists and re-sends events
for up to 30 days (https://docs.stripe.com/webhooks#behaviors)."""

HOUR = 3_600
"""Seconds whose events are one list, in the order in which they were accepted."""

DAY = 24 * HOUR
"""Seconds within which an event is settled as a rule: its lists are kept for as much longer."""

HOURS_OF = 720
"""Hours whose events share the lists by session."""

MAX_ACTS, MAX_TRAIL = 5, 5
"""How many things that people had done, and how many failed attempts, a record keeps."""

MAX_AUDIT = 1_000
"""How many things that people had done are kept in all."""

KEEP_LAST = 400 * 86_400
"""Seconds it is remembered what handlers last heard of a session, from its first event in a
calendar month on. So it is at least 369 days from its last one: past an outage of a year."""

MONTHS_KEPT = 15
"""Calendar months that `KEEP_LAST` can touch."""

KEEP_OUTCOMES = 40 * 86_400
"""Seconds that the counts of a day are kept: the console shows a month."""

KEEP_ANSWER = 5.0
"""Seconds a script's reply is kept for a caller that did not receive it. Such a caller repeats the
call within two seconds (`TIMEOUT` in service/connection.py), or with the worker's next claim."""

STEP = 5.0
"""Smallest jump of the Redis clock, in seconds, that counts as a change of the clock. A smaller one
cannot be told from a late caller, and ends no lease."""

CATCH_UP = 0.01
"""Seconds by which each sweep, of which there are two a second, brings the clock of the inbox back
to that of Redis, once that was set back: an hour takes two days, and leases last 2 % longer."""

QUEUE = "identity"
"""RQ's name of the queue."""

RECORD, DONE, DUE, DEAD = "iw:evt:", "iw:done:", "iw:due", "iw:dead"
DEATHS, DEAD_OF, LOG, HOURS, OF = "iw:deaths", "iw:dead-of:", "iw:log:", "iw:hours", "iw:of:"
LISTED, AUDIT, HANDLERS = "iw:listed", "iw:audit", "iw:handlers"
OUTCOMES = "iw:outcomes:"
CONSOLE, BULK, BULKS = "iw:console", "iw:bulk", "iw:bulks"
SESSION, WAITING, LAST = "iw:session:", "iw:waiting:", "iw:last:"
PAUSE, TURN, BUDGET, SEQUENCE = "iw:pause", "iw:turn:", "iw:budget", "iw:seq"
ANSWER, CLOCK = "iw:answer:", "iw:clock"
WATERMARK, ACCOUNTS = "iw:watermark", "iw:accounts"
PROCESSES, SEEN, RECONCILED = "iw:processes", "iw:seen", "iw:reconciled"
PROBE = "iw:probe"
JOB, QUEUE_KEY = "rq:job:", f"rq:queue:{QUEUE}"


def pause_of(account: str = "") -> str:
    """Return the key of the pause of all events, or of those of one account."""
    return f"{PAUSE}:{account}" if account else PAUSE
