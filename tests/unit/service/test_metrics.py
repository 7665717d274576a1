"""`service.metrics`: the table, what a process counts, and how it is shown. No Redis is asked."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import redis
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from service import metrics_page, receiver, signature
from service.findings import Finding
from service.inbox import AcceptResult, Refused
from service.ledger import Ledger
from service.metrics import TABLE, Metrics, field_of
from service.metrics_page import GAUGES, Page
from service.processes import Process, Seen
from service.settings import Settings
from service.survey import KINDS, Reconciled, Survey, kind_of
from workers.failures import FailureKind

SETTINGS = Settings(
    stripe_webhook_secret=f"old=whsec_{'abcdefgh' * 4}12345678,new=whsec_{'12345678' * 4}abcdefgh"
)
ROOT = Path(__file__).parents[3]
COUNTERS = [name for name, counted in TABLE.items() if not counted.buckets]
HISTOGRAMS = [name for name, counted in TABLE.items() if counted.buckets]


class Books:
    """A page, the metrics of its process, and what Redis would say of others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, settings: Settings = SETTINGS) -> None:
        monkeypatch.setattr(metrics_page, "survey", lambda _: self.survey())
        monkeypatch.setattr(Metrics, "_start", lambda _: None)
        self.running: list[Seen] = []
        self.is_up = True
        self.changed: dict[str, Any] = {}
        self.found: list[Finding] = []
        own = Ledger()
        self.metrics = Metrics(_Away(), "web", own)
        self.page = Page(_Away(), self.metrics, own, settings=settings, look=lambda: self.found)

    def survey(self) -> Survey:
        if not self.is_up:
            raise redis.ConnectionError
        none: Any = {}
        deaths = Counter({("a.b", "failed KeyError"): 1, ("", "failed x"): 1, ("", "retry"): 1})
        found = Survey(
            *(1e9, 0.0, 3, 2, 1, 4.5, 6.5, none, deaths, self.running),
            *(("stripe: key 401", 9.0), none, {"": 7.0}, 10, 100, 50),
            {"verified_with|new": 2.0},
        )
        return replace(found, **self.changed)

    def says(self, id_: str, counts: dict[str, float], *, age: float = 1, **more: Any) -> None:
        """Have a process, by default a worker, say what it has counted."""
        process = Process(**{"role": "worker", "pid": 1, "started": 1, "counts": counts} | more)
        self.running = [each for each in self.running if each.id != id_]
        self.running.append(Seen(id_, age, process))

    def families(self) -> dict[str, Metric]:
        text = self.page.render().decode()
        return {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: str) -> float:
        (value,) = (
            sample.value
            for family in self.families().values()
            for sample in family.samples
            if sample.name == f"identity_webhooks_{name}" and sample.labels == labels
        )
        return value


class _Away:
    """A Redis that cannot be reached."""

    class connection_pool:  # noqa: N801
        @staticmethod
        def get_connection() -> None:
            raise redis.ConnectionError


@pytest.fixture
def books(monkeypatch) -> Books:
    return Books(monkeypatch)


def count(books: Books, name: str, by: int = 1) -> tuple[str, dict[str, str]]:
    """Count the first series of a metric, by whoever counts it; its name and labels on the page."""
    counted = TABLE[name]
    labels = [values[0] if values else f"{label}.x" for label, values in _known(name)]
    if counted.of == "web":
        books.metrics.count(name, *labels, by=by)
    else:
        before = books.running[0].process.counts if books.running else {}
        field = field_of(name, *labels)
        books.says("w", before | {field: before.get(field, 0) + by})
    prefix = "web_" if counted.of == "web" else ""
    return f"{prefix}{name}_total", dict(zip(counted.labels, labels, strict=True))


def _known(name: str) -> list[tuple[str, tuple[str, ...]]]:
    counted = TABLE[name]
    known = [*counted.known, *[()] * len(counted.labels)]
    return list(zip(counted.labels, known, strict=False))


def test_what_is_not_in_the_table_cannot_be_counted(books) -> None:
    with pytest.raises(KeyError):
        books.metrics.count("clicks")
    with pytest.raises(KeyError):
        books.metrics.observe("clicks", 1)
    with pytest.raises(ValueError, match=r"claims has the labels \('answer',\)"):
        books.metrics.count("claims")
    with pytest.raises(ValueError, match="settle_seconds has the labels"):
        books.metrics.count("settle_seconds")
    with pytest.raises(ValueError, match="claims has the labels"):
        books.metrics.observe("claims", 1, "new")
    assert books.metrics.counts() == {}


def test_every_label_value_that_the_code_counts_is_known_beforehand() -> None:
    """What is not known beforehand is born with its first count, which no `increase` sees."""
    known = {name: set(TABLE[name].known[0]) for name in ("deliveries", "claims", "fetches")}
    answers = {*map(str, AcceptResult), "ignored", "other_mode", "redis_failed"}
    assert known["deliveries"] == answers
    passing = {Refused.PAUSED, Refused.THROTTLED}
    assert known["claims"] == {"claimed", "quarantined", *map(str, set(Refused) - passing)}
    assert known["fetches"] == {"ok", *get_args(FailureKind)}
    sources = " ".join(
        path.read_text() for path in (ROOT / "service").rglob("*.py") if path.stem != "metrics"
    )
    written = set(re.findall(r'Refusal\(\d+(?: if .* else \d+)?, "(\w+)"\)', sources))
    written |= {each.code for each in signature.SignatureError.__subclasses__()}
    written |= set(re.findall(r'refuse\(\d+, "(\w+)"', sources)) | {"malformed_event"}
    assert written - {"full"} == set(TABLE["refusals"].known[0])
    assert known["deliveries"] >= receiver.REFUSED_FOR_NOW


def test_every_series_known_beforehand_is_born_at_0(books) -> None:
    books.says("w", {}, handlers=("a.b",))
    families = books.families()
    for name in COUNTERS:
        prefix = "web_" if TABLE[name].of == "web" else ""
        family = families[f"identity_webhooks_{prefix}{name}"]
        known = list(TABLE[name].series({"handler": ["a.b"], "secret": ["old", "new"]}))
        assert [s.value for s in family.samples] == [0] * len(known), name
        assert known, name
        labels = [tuple(s.labels[label] for label in TABLE[name].labels) for s in family.samples]
        assert sorted(labels) == sorted(known)
    assert families.keys() >= {f"identity_webhooks_{name}" for name in GAUGES}


@pytest.mark.parametrize("name", COUNTERS)
def test_what_is_counted_comes_out_with_its_labels(name, books) -> None:
    books.says("w", {})
    books.families()
    count(books, name, by=2)
    shown, labels = count(books, name)
    assert books.value(shown, **labels) == 3
    family = books.families()[f"identity_webhooks_{shown.removesuffix('_total')}"]
    assert family.type == "counter"
    assert family.documentation.startswith(TABLE[name].sentence)
    assert ("same from every" in family.documentation) == (TABLE[name].of == "all")


@pytest.mark.parametrize("label", ['say "hi"', "a\nb", "back\\slash", "ünïcode", "", "a b"])
def test_any_label_survives_the_text_format(label, books) -> None:
    books.families()
    books.says("w", {field_of("handler_runs", label, "done"): 1})
    assert books.value("handler_runs_total", handler=label, status="done") == 1


def test_a_label_cannot_break_out_of_its_field(books) -> None:
    books.families()
    books.says("w", {field_of("handler_runs", "a|b", "done"): 1, "retired|x": 4, "claims|a|b": 4})
    assert books.value("handler_runs_total", handler="a_b", status="done") == 1


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_a_value_that_is_observed_many_times_counts_as_often(name, monkeypatch) -> None:
    once, often = Books(monkeypatch).metrics, Books(monkeypatch).metrics
    labels = [f"{label}.x" for label in TABLE[name].labels]
    for value in (0.0, 0.25, TABLE[name].buckets[-1] * 2):
        once.observe(name, value, *labels, times=3)
        for _ in range(3):
            often.observe(name, value, *labels)
    assert once.counts() == often.counts()


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_a_histogram_is_cumulative(name, books) -> None:
    bounds, labels = TABLE[name].buckets, [f"{label}.x" for label in TABLE[name].labels]
    values = [0.0, bounds[0], bounds[0] * 1.01, bounds[3], bounds[-1] * 2]
    for value in values:
        books.metrics.observe(name, value, *labels)
    books.families()
    if TABLE[name].of == "all":
        books.says("w", books.metrics.counts())
    prefix = "web_" if TABLE[name].of == "web" else ""
    family = books.families()[f"identity_webhooks_{prefix}{name}"]
    buckets = {float(s.labels["le"]): s.value for s in family.samples if s.name.endswith("_bucket")}
    assert list(buckets) == [*bounds, float("inf")]
    assert buckets == {le: sum(value <= le for value in values) for le in buckets}
    found = {s.name.rpartition("_")[2]: s.value for s in family.samples if "le" not in s.labels}
    assert found["count"] == len(values)
    assert found["sum"] == pytest.approx(sum(values), abs=0.001)


def test_the_first_look_is_the_beginning(books) -> None:
    books.says("w", {"redriven": 1000})
    assert books.value("redriven_total") == 0
    books.says("w", {"redriven": 1003})
    books.says("newcomer", {"redriven": 2})
    assert books.value("redriven_total") == 5


def test_what_every_process_counts_is_added_up_and_only_what_is_new(books) -> None:
    for role in ("web", "worker", "periodic"):
        books.says(role, {}, role=role)
    books.families()
    for number, role in enumerate(("worker", "periodic"), 1):
        books.says(role, {"redriven": 10 * number, "reconcile_missed": number}, role=role)
    books.metrics.count("unknown_paths", "GET", by=2)
    for _ in range(3):  # each look is one more
        assert books.value("redriven_total") == 30
        assert books.value("reconcile_missed_total") == 3
        assert books.value("web_unknown_paths_total", method="GET") == 2
    books.metrics.count("unknown_paths", "GET")
    assert books.value("web_unknown_paths_total", method="GET") == 3


def test_one_that_lives_on_counts_once_however_many_come_and_go(books, monkeypatch) -> None:
    monkeypatch.setattr(metrics_page, "KNOWN", 3)
    books.says("stays", {"redriven": 5})
    assert books.value("redriven_total") == 0
    for number in range(1, 9):
        books.running = books.running[:1]
        books.says(f"w{number}", {"redriven": 1})
        assert books.value("redriven_total") == number
    books.says("stays", {"redriven": 7})
    assert books.value("redriven_total") == 10


def test_handlers_whose_workers_are_gone_keep_their_series(books) -> None:
    books.says("old", {}, handlers=("p.gone", "p.b"))
    books.families()
    books.running = []
    books.says("new", {}, handlers=("p.b", "p.new"))
    for name in ("p.gone", "p.b", "p.new"):
        assert books.value("handler_runs_total", handler=name, status="done") == 0


def test_each_account_has_its_own_last_pass(books) -> None:
    good, bad = Reconciled(1, missed=2), Reconciled(1, missed=3, failed="list: key 401")
    books.changed = {"reconciled": {"": good, "acct_1": bad}, "through": {"": 7.0, "acct_1": 9.0}}
    for name, values in {
        "reconcile_failed": {"own": 0, "acct_1": 1},
        "reconcile_found": {"own": 2, "acct_1": 3},
        "reconciled_seconds": {"own": 7, "acct_1": 9},
    }.items():
        assert {each: books.value(name, account=each) for each in values} == values


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        ("emptied", [("w", 10, 1, 5), (None, 0, 0, 5), ("w", 12, 1, 7)]),
        ("restored", [("w", 10, 1, 5), ("w", 3, 1, 5), ("w", 11, 1, 6)]),
        ("one that is gone comes back with a backup", [(None, 0, 0, 0), ("w", 4, 300, 0)]),
        ("one that nobody knows comes back", [("other", 900, 300, 0), ("other", 901, 1, 1)]),
        ("one that is new was looked at late", [("other", 9, 50, 9), ("other", 10, 1, 10)]),
        ("one that is gone for longer comes back", [("other", 9, 70, 0)]),
        ("it ended", [("w", 8, 1, 3), ("w", 8, 400, 3), (None, 0, 0, 3)]),
    ],
)
def test_no_counter_jumps_or_goes_back_whatever_is_done_to_redis(what, steps, books) -> None:
    """Each step is who says what, how long ago, and what then is shown."""
    books.says("w", {"redriven": 5})
    assert books.value("redriven_total") == 0
    for id_, n, age, shown in steps:
        if id_ is None:
            books.running = []
        else:
            books.says(id_, {"redriven": n}, age=age)
        assert books.value("redriven_total") == shown, what


def test_without_redis_the_page_tells_what_the_instance_counted(books) -> None:
    books.says("w", {"redriven": 1})
    books.families()
    books.says("w", {"redriven": 5})
    assert books.value("redis_up") == 1
    assert books.value("redriven_total") == 4
    books.is_up = False
    books.metrics.count("deliveries", "redis_failed")
    assert books.value("web_deliveries_total", answer="redis_failed") == 1
    assert books.value("redis_up") == 0
    assert books.value("accepting") == 0
    assert books.value("redriven_total") == 4
    assert not books.families()["identity_webhooks_pending_events"].samples, "unknown, not 0"


def test_gauges_tell_what_is_now(books) -> None:
    books.says("w", {}, slots=20, busy=1)
    assert books.value("pending_events") == 3
    assert books.value("waiting_events") == 0
    assert books.value("in_flight_events") == 1
    assert books.value("overdue_seconds") == 4.5
    assert books.value("dead_events", reason="failed") == 2
    assert books.value("dead_events", reason="quarantined") == 0
    assert books.value("processes", role="worker") == 1
    assert books.value("processes", role="periodic") == 0
    assert books.value("paused", reason="stripe: key 401") == 1
    assert books.value("reconciled_seconds", account="own") == 7
    assert books.value("queued_jobs") == 2
    assert books.value("oldest_event_seconds") == 6.5
    assert books.value("worker_slots") == 20
    assert books.value("workers_lacking_handlers") == 0
    assert books.value("redis_memory_bytes") == 10
    assert books.value("redis_memory_limit_bytes") == 100
    assert books.value("clock_ahead_seconds") == 0
    assert books.value("secret_unused_seconds", secret="new") == 2
    assert books.value("secret_unused_seconds", secret="old") == float("inf")


def test_what_is_unknown_or_not_the_case_is_told_as_such(books) -> None:
    books.says("a", {}, handlers=("p.a", "p.b"))
    books.says("b", {}, handlers=("p.a",))
    books.says("web", {}, role="web")
    books.changed = {"memory": None, "memory_limit": None, "paused": None, "clock_ahead": 60.0}
    families = books.families()
    for name in ("redis_memory_bytes", "redis_memory_limit_bytes"):
        assert not families[f"identity_webhooks_{name}"].samples
    assert books.value("paused", reason="") == 0
    assert books.value("clock_ahead_seconds") == 60
    assert books.value("workers_lacking_handlers") == 1
    assert books.value("processes", role="web") == 1
    assert books.value("processes", role="worker") == 2


@pytest.mark.parametrize(("state", "accepting"), [("good", 1), ("unknown", 0), ("bad", 0)])
def test_nothing_is_accepted_while_redis_is_unfit(state, accepting, books) -> None:
    assert books.value("accepting") == 1
    books.found = [Finding("eviction", state, "keys are evicted")]
    assert books.value("accepting") == accepting


@pytest.mark.parametrize(
    ("limit", "pending", "accepting"),
    [(None, 49, 1), (None, 50, 0), (60, 50, 1), (60, 60, 0), (3, 2, 1), (3, 3, 0)],
)
def test_nothing_is_accepted_above_the_limit_that_is_set_or_else_fits(
    monkeypatch, limit, pending, accepting
) -> None:
    books = Books(monkeypatch, SETTINGS.model_copy(update={"inbox_limit": limit}))
    books.changed = {"pending": pending}
    assert books.value("accepting") == accepting
    assert books.value("inbox_limit") == (limit or 50)
    assert books.value("pending_events") == pending


def test_processes_of_an_instance_add_up_and_one_that_is_killed_leaves_its_counts(books) -> None:
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            # Noted before it dies, as once a second.
            books.metrics.count("unknown_paths", "GET", by=2)
            books.metrics.flush()
            os.kill(os.getpid(), 9)
        os.waitpid(pid, 0)
    books.metrics.count("unknown_paths", "GET")
    assert books.value("web_unknown_paths_total", method="GET") == 7


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        ("failed KeyError", "failed"),
        ("timeout", "timeout"),
        ("retry", "retry"),
        ("discarded", "discarded"),
        ("stripe forbidden", "stripe"),
        ("quarantined", "quarantined"),
        ("this release has no such handler", "no such handler"),
        ("processing failed", "processing failed"),
        ("not listed", "not listed"),
        ("", "other"),
        ("whatever else", "other"),
    ],
)
def test_what_an_event_died_of_is_one_of_few_words(cause, kind) -> None:
    assert kind_of(cause) == kind
    assert kind in KINDS
