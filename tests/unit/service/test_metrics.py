"""`service.metrics`: the table, and how it is rendered. Redis is a dict here."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from service import metrics
from service.metrics import COUNTERS, HISTOGRAMS, Metrics


class Held:
    """What stands in Redis."""

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}

    def hgetall(self, key: str) -> dict[bytes, bytes]:
        assert key == "iw:metrics"
        return self.fields

    def gauges(self) -> list[tuple[str, str, float]]:
        return [("pending_events", "Events accepted and not settled.", 3)]


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def counting(held, monkeypatch) -> Metrics:
    """Metrics whose counts are in `held` at once, without the thread that takes them to Redis."""

    def add(_: Metrics, field: str, by: int) -> None:
        value = int(held.fields.get(field.encode(), 0)) + by
        held.fields[field.encode()] = str(value).encode()

    monkeypatch.setattr(Metrics, "_add", add)
    return Metrics(None)


def page(held: Any) -> dict[str, Metric]:
    text = metrics.render(held, held).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(family: Metric) -> dict[tuple[str, ...], float]:
    return {(s.name.rpartition("_")[2], *s.labels.values()): s.value for s in family.samples}


def test_what_is_not_in_the_table_cannot_be_counted(counting, held) -> None:
    with pytest.raises(KeyError):
        counting.count("clicks")
    with pytest.raises(KeyError):
        counting.observe("clicks", 1)
    with pytest.raises(ValueError, match=r"claims has the labels \('answer',\)"):
        counting.count("claims")
    with pytest.raises(ValueError, match="redriven has the labels"):
        counting.count("redriven", "x")
    assert held.fields == {}


@pytest.mark.parametrize("name", COUNTERS)
def test_each_counter_comes_out_with_its_labels(name, counting, held) -> None:
    labels = COUNTERS[name][0]
    values = [f"value of {label}" for label in labels]
    counting.count(name, *values, by=2)
    counting.count(name, *values)
    family = page(held)[f"identity_webhooks_{name}"]
    assert (family.type, family.documentation) == ("counter", COUNTERS[name][1])
    (sample,) = family.samples
    assert (sample.name, sample.value) == (f"identity_webhooks_{name}_total", 3)
    assert sample.labels == dict(zip(labels, values, strict=True))


@pytest.mark.parametrize("label", ['say "hi"', "a\nb", "back\\slash", "ünïcode", "", "a b"])
def test_any_label_survives_the_text_format(label, counting, held) -> None:
    counting.count("handler_runs", label, "done")
    family = page(held)["identity_webhooks_handler_runs"]
    assert [sample.labels["handler"] for sample in family.samples] == [label]


def test_a_label_cannot_break_out_of_its_field(counting, held) -> None:
    counting.count("handler_runs", "a|b", "done")
    family = page(held)["identity_webhooks_handler_runs"]
    assert samples(family) == {("total", "a_b", "done"): 1}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_a_histogram_is_cumulative(name, counting, held) -> None:
    bounds = HISTOGRAMS[name][0]
    values = [0.0, bounds[0], bounds[0] * 1.01, bounds[3], bounds[-1] * 2]
    for value in values:
        counting.observe(name, value)
    family = page(held)[f"identity_webhooks_{name}"]
    buckets = {float(s.labels["le"]): s.value for s in family.samples if s.name.endswith("_bucket")}
    assert list(buckets) == [*bounds, float("inf")]
    assert buckets == {le: sum(value <= le for value in values) for le in buckets}
    found = {s.name.rpartition("_")[2]: s.value for s in family.samples if "le" not in s.labels}
    assert found["count"] == len(values)
    assert found["sum"] == pytest.approx(sum(values), abs=0.001 * len(values))


def test_all_that_is_known_is_there_from_the_start(held) -> None:
    assert page(held).keys() == {
        f"identity_webhooks_{name}" for name in (*COUNTERS, *HISTOGRAMS, "pending_events")
    }
    gauge = page(held)["identity_webhooks_pending_events"]
    assert (gauge.type, gauge.samples[0].value) == ("gauge", 3)


def test_a_field_of_another_release_is_passed_over(held) -> None:
    held.fields = {b"retired|x": b"4", b"claims|a|b": b"4", b"claims|claimed": b"1"}
    assert samples(page(held)["identity_webhooks_claims"]) == {("total", "claimed"): 1}
