"""What a supervisor reads of a process that has died."""

from __future__ import annotations

from workers.in_hand import LINE, Held, InHand


def test_what_a_process_noted_is_there_after_its_death() -> None:
    in_hand = InHand(3)
    in_hand.note("evt_1")
    in_hand.note("acct_1-evt_2", "p.slow")
    in_hand.note("evt_3", "p.quick")
    in_hand.forget("evt_3")
    assert sorted(in_hand.bury()) == [Held("acct_1-evt_2", "p.slow"), Held("evt_1", "")]
    assert in_hand.ran == {"acct_1-evt_2": "p.slow"}
    assert in_hand.read() == []


def test_a_line_is_used_again_and_says_the_last_thing() -> None:
    in_hand = InHand(1)
    for number in range(5):
        in_hand.note(f"evt_{number}", "p.handle")
        in_hand.note(f"evt_{number}")
        assert in_hand.read() == [Held(f"evt_{number}", "")]
        in_hand.forget(f"evt_{number}")
    in_hand.forget("evt_never_noted")


def test_what_does_not_fit_is_cut_or_left_out() -> None:
    in_hand = InHand(2)
    for key in ("a" * 1000, "b", "c"):
        in_hand.note(key, "p.handle")
    first, second = in_hand.read()
    assert {first.event_key, second.event_key} == {"a" * (LINE - 1), "b"}


def test_the_deaths_that_are_remembered_are_bounded() -> None:
    in_hand = InHand(1)
    for number in range(1100):
        in_hand.note(f"evt_{number}", "p.handle")
        in_hand.bury()
        in_hand.forget(f"evt_{number}")
    assert len(in_hand.ran) == 1000
    assert "evt_0" not in in_hand.ran
