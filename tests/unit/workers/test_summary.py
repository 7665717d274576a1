"""What is noted while an event is worked on."""

from __future__ import annotations

import time

from workers.summary import StripeCall, Summary


def test_stages_are_milliseconds_of_all_calls_and_all_handlers() -> None:
    summary = Summary(began=time.monotonic() - 100)
    assert summary.stages().keys() == {"claim_to_end"}, "what there was not is left out"
    summary.calls += [
        StripeCall("GET /v1/a", "500", 0.5, "req_1"),
        StripeCall("GET /v1/a", "none", 2, None),
        StripeCall("GET /v1/a", "200", 0.25, "req_2"),
    ]
    summary.ran |= {"p.a": 3.0, "p.b": 0.125}
    first = summary.starts_handler()
    assert first is not None
    assert first >= 100
    assert summary.starts_handler() is None, "only of the first one"
    stages = summary.stages()
    assert (stages["stripe"], stages["handlers"]) == (2_750, 3_125)
    assert 100_000 <= stages["claim_to_handler"] == round(first * 1000) <= stages["claim_to_end"]
    assert summary.request_ids == ["req_1", "req_2"]
