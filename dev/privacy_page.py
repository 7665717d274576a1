"""Write docs/privacy.md from the code: `make privacy-page`."""

from __future__ import annotations

import re
from pathlib import Path

from identity_webhooks.database import SESSIONS
from identity_webhooks.verification import SENSITIVE
from service import logs
from service.inbox import keys
from workers.failures import RESULTS_SHOWN_FOR

PAGE = Path(__file__).resolve().parents[1] / "docs/privacy.md"

TEXT = """\
# Where data is

For those who answer for personal data: what is kept, where, for how long, who can see it, and how it is erased.

Keys, fields and columns on this page are those of the code (`make privacy-page`).

## What leaves a process

Names, documents and dates of birth stay in the memory of a worker and of its child processes; images are not fetched.
What leaves a process about a person:

| to | what |
|---|---|
| Redis | ids of session and account, times, codes: [In Redis](#in-redis) |
| the log (standard output) | the same, and the subject: [In logs](#in-logs) |
| Prometheus, by `/metrics` | nothing of one person |
| a collector of traces, if set | ids of event, session and account: [traces](#to-opentelemetry-and-sentry) |
| Sentry, if set | lines of the log without the subject: [reports](#to-opentelemetry-and-sentry) |
| a browser, by the [console](console.md) | ids, times, codes |
| Stripe | the ids of the session and of the event, in the request that asks for them |
| your handlers | the session, its report, and the fields of `needs=`. With `own_process=True`, and while an event is a suspect, over a pair of sockets to a child process of the worker |
| `IDENTITY_DATABASE`, if set | ids, outcome, reason and subject: [its table](#in-the-database-of-the-built-in-handler-database) |
| the URLs in `FORWARD_TO`, if set | ids, outcome, reason and subject: [the message](#what-the-built-in-handler-forward-sends) |
| the terminal of an operator | `python -m workers sessions` and `python -m workers reports` print what Stripe answers, names included |

The subject is what you put into `client_reference_id` or the metadata's `user_id`: use an id of yours there, no name
and no e-mail address.

## In memory, while an event is worked on

A worker fetches the session and its last report: names, address, document, what the person provided; and for
handlers that ask for them, within {hours} hours, {fields}. They go to the handlers
of that event and are dropped with it. They are on no disk of the service: there are no core dumps, and other
processes of the same user cannot read its memory (Linux). A webhook's body, which can hold the same, is read
for its identifiers and dropped.

## In Redis

Identifiers, types, times, counts, codes of Stripe's, the masked texts of `Retry` and `Discard`, and the user names of
operators who had something done with events. No names of those who verify themselves, no documents, no bodies. `<vs>`
and `<account>` are Stripe's ids; together with Stripe's data they lead to a person, so they are pseudonymous, not
anonymous.

| key | kept | what |
|---|---|---|
{rows}

"-" is kept until it is worked off, or for ever where it is a number. A dead event stays until it is
replayed and done.

## In logs

One pipeline, with these keys and no others; texts are cut at 200 characters, and masked: secrets and e-mail
addresses always, and while an event is worked on every personal value that was fetched for it. Exceptions are
types and places in the code. The `subject` is logged by the built-in handler `audit` and by handlers of yours.

{log_keys}

How long logs are kept is yours to set, where they are collected. `print` in a handler goes there unmasked.

## In metrics

Counts by type, state, outcome, reason and handler's name. Nothing of one person.

## To OpenTelemetry and Sentry

Nothing, unless you install an extra and say [where to](operations.md#traces-and-reports).

- A trace holds ids of event, session and account, the event's kind and form, handlers' names, numbers of attempts and how
  they ended, and the status that a delivery was answered with; no text of an exception, no header, no body. The
  record in Redis then has the trace's id (`trace`) until the event is done. What handlers trace themselves is theirs.
- A report to Sentry holds a line of the log, as it is there but without `subject`, and of an exception its type and the files,
  lines and functions it came through; no text, variable, line of source, request, user or breadcrumb, also not
  of what a handler reports itself, whose messages are masked as in logs. And the version and the host's name.

## At Stripe

The session, the report and the images, until you redact the session: `python -m workers sessions redact vs_...`.
That takes up to four days; then the `redacted` event comes.

## What your handlers store

The service does not know it. Store the session's id beside your user id; erase by it when the `redacted` event
comes ([handlers.md](handlers.md#personal-data)). `identity_webhooks_once`, the table of `v.once`, holds event ids and handlers' names.

## In the database of the built-in handler `database`

`{table}`, when `IDENTITY_DATABASE` is set: {columns}. When a session
is redacted, its subject and reason are erased, and nothing writes them again.

- SQLite: no file of the database holds them when the handler is done (`secure_delete`, `VACUUM`, and the write-ahead
  log is emptied). The whole file is written anew for it, and locked meanwhile; while somebody else uses it, the handler
  is tried again. Blocks that the file system has given up are outside its reach.
- PostgreSQL keeps the row's earlier version until it is vacuumed, and pieces of it in free space, in the statistics of
  the planner and in the write-ahead log. With `wal_recycle=off` no file of the server holds them after:
  `VACUUM (FULL, ANALYZE) {table}` (it locks the table while it runs), `VACUUM FULL pg_statistic`,
  `SELECT pg_switch_wal()`, `CHECKPOINT`. Replicas, archived logs and backups keep theirs for as long as you keep them.

## What the built-in handler `forward` sends

Ids, times, codes, and the subject unless it looks personal, to the URLs in `FORWARD_TO`. What they keep is theirs: the
message of the `redacted` event tells them to erase.

## Erasing one person

1. `python -m workers sessions redact vs_...` for each session of the person.
2. Your handlers of `redacted` erase what they stored.
3. What Redis keeps of the events (ids, times, codes) goes by itself: see "kept" above.
"""


def page() -> str:
    """Return the page."""
    names = ", ".join(SENSITIVE.values())
    return TEXT.format(
        table=SESSIONS.name,
        columns=", ".join(column.name for column in SESSIONS.columns),
        hours=RESULTS_SHOWN_FOR // 3600,
        fields=names,
        rows="\n".join(f"| `{key}` | {kept} | {what} |" for key, kept, what in redis_keys()),
        log_keys=", ".join(f"`{name}`" for name in sorted(logs.KEYS)),
    )


def redis_keys() -> list[tuple[str, str, str]]:
    """Return key, time to live and meaning of each row of the table in service/inbox/keys.py."""
    lines = (keys.__doc__ or "").splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("====")]
    columns = [(m.start(), m.end()) for m in re.finditer("=+", lines[rules[0]])]
    rows: list[list[str]] = []
    for line in lines[rules[1] + 1 : rules[2]]:
        cells = [line[start:end].strip() for start, end in columns[:-1]]
        cells.append(line[columns[-1][0] :].strip())
        if cells[0]:
            rows.append(cells)
        else:  # the sentence goes on
            rows[-1][-1] += f" {cells[-1]}"
    return [
        (key, kept, what.replace("|", "\\|").replace("<", "&lt;")) for key, _, kept, what in rows
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
