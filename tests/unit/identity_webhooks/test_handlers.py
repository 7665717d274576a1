"""`identity_webhooks.handlers`: the mark, and what a handler may raise."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity_webhooks import Discard, Retry
from identity_webhooks.handlers import RETRY_FOR


class TestAnswers:
    @given(st.one_of(st.floats(), st.integers()))
    def test_any_delay_is_made_one_that_can_be_waited_for(self, delay) -> None:
        made = Retry("why", delay=delay).delay
        assert made is not None
        assert 0 <= made <= RETRY_FOR
        assert made == delay or not 0 <= delay <= RETRY_FOR

    def test_no_delay_is_no_delay(self) -> None:
        assert Retry("why").delay is None

    @pytest.mark.parametrize("delay", [None, 0, 0.5, 3 * 86_400, timedelta(0), timedelta(days=3)])
    def test_a_delay_that_can_be_waited_for_is_no_misuse(self, delay) -> None:
        assert Retry("why", delay=delay).misuse == ""

    def test_a_subclass_need_not_call_init(self) -> None:
        class Closed(Retry):
            def __init__(self) -> None: ...

        class Never(Discard):
            def __init__(self) -> None: ...

        assert (Closed().reason, Closed().delay, Never().reason) == ("", None, "")
