"""What a supervisor reads of a process that has died."""

from __future__ import annotations

import time

from workers.in_hand import LINE, Held, InHand


def test_what_a_process_noted_is_there_after_its_death() -> None:
    in_hand = InHand(3)
    in_hand.note("evt_1", "1")
    in_hand.note("acct_1-evt_2", "17", "p.slow")
    in_hand.note("evt_3", "1", "p.quick")
    in_hand.forget("evt_3")
    died = [Held("acct_1-evt_2", "17", "p.slow"), Held("evt_1", "1", "")]
    assert sorted(in_hand.bury()) == sorted(in_hand.died) == died
    assert in_hand.read() == []
    assert in_hand.bury() == in_hand.died == [], "the next one had nothing"


def test_a_line_is_used_again_and_says_the_last_thing() -> None:
    in_hand = InHand(1)
    for number in range(5):
        in_hand.note(f"evt_{number}", "1", "p.handle")
        in_hand.note(f"evt_{number}", "1")
        assert in_hand.read() == [Held(f"evt_{number}", "1", "")]
        in_hand.forget(f"evt_{number}")
    in_hand.forget("evt_never_noted")


def test_what_does_not_fit_is_cut_or_left_out() -> None:
    in_hand = InHand(3)
    for key, handler in (("a" * 1000, "p.one"), ("b", "p" * 1000), ("c", "p.three"), ("d", "p.x")):
        in_hand.note(key, "1", handler)
    assert set(in_hand.read()) == {
        Held("b", "1", "p" * (LINE - 1 - len("b 1 "))),
        Held("c", "1", "p.three"),
    }


def test_when_a_process_last_ran_is_beside_what_it_has_in_hand() -> None:
    for lines in (0, 2):
        in_hand = InHand(lines)
        assert in_hand.ran_at() == 0
        in_hand.note_running()
        first = in_hand.ran_at()
        assert 0 < first <= time.monotonic()
        for number in range(lines):
            in_hand.note(f"evt_{number}", "1", "p" * LINE)
        assert in_hand.ran_at() == first, "the last line does not reach into it"
        in_hand.note_running()
        assert in_hand.ran_at() > first
        assert len(in_hand.bury()) == lines
        assert in_hand.ran_at() == 0
