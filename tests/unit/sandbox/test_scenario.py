"""Scenarios: which lives are led, when, and what is refused."""

from functools import partial
from pathlib import Path

import pytest

from stripe_identity_sandbox.scenario import Life, Scenario, play, read, sleep, timeline

LIFE = "created, 3s, document_expired, 1h, verified, 4d, redacted"


def test_a_life_is_steps_in_time() -> None:
    assert list(Life(LIFE).steps()) == [
        (0, "created"),
        (3, "document_expired"),
        (3603, "verified"),
        (3603 + 4 * 86400, "redacted"),
    ]


def test_the_same_seed_gives_the_same_lives() -> None:
    def with_seed(seed: int) -> list[tuple[float, int, str]]:
        lives = [Life("created, 1s, verified", share=3), Life("created, 2s, abandoned")]
        return list(timeline(Scenario(lives, sessions=40, every="1s", seed=seed)))

    steps = with_seed(1)
    assert steps == with_seed(1) != with_seed(2)
    assert [at for at, _, _ in steps] == sorted(at for at, _, _ in steps)
    verified = sum(change == "verified" for _, _, change in steps)
    assert 20 < verified < 40, "three of four"


def test_playing_waits_and_does() -> None:
    log: list[object] = []

    def do(session: str | None, change: str) -> str:
        log.append((session, change))
        return session or f"vs_{len(log)}"

    scenario = Scenario([Life("created, 5s, verified")], sessions=2, every="2s")

    def wait(now: float, at: float) -> None:
        log.append(at - now)

    assert play(scenario, wait=wait, do=do) == ["vs_1", "vs_3"]
    assert log == [
        *((None, "created"), 2.0, (None, "created"), 3.0),
        *(("vs_1", "verified"), 2.0, ("vs_3", "verified")),
    ]


def test_a_slow_app_does_not_stretch_a_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            assert seconds >= 0
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr("stripe_identity_sandbox.scenario.time", clock)
    begun: list[float] = []

    def do(session: str | None, _: str) -> str:
        begun.append(clock.now - 1000)
        clock.now += 0.9 if len(begun) != 5 else 2.5
        return session or f"vs_{len(begun)}"

    scenario = Scenario([Life("created")], sessions=9, every=1)
    play(scenario, wait=partial(sleep, clock.now), do=do)
    assert begun == pytest.approx([0, 1, 2, 3, 4, 6.5, 7.4, 8.3, 9.2]), "late, and caught up"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lives: [{life: 'created, exploded'}]", "exploded"),
        ("lives: [{life: 'verified'}]", "begins with created"),
        ("lives: [{life: 'created, -3s'}]", "-3s"),
        ("lives: [{life: created}]\nevery: often", "often"),
        ("lives: [{life: created, colour: red}]", "colour"),
        ("lives: nothing", "array"),
        ("lives: []", "length >= 1"),
        ("lives: [{life: created}]\nsessions: 0", ">= 1"),
        ("[", "expected"),
        ("sessions: 3", "lives"),
        ("lives: [{life: created}]\nfaults: [{kind: drop}, {kind: nonsense}]", "nonsense"),
        ("lives: [{life: created}]\nfaults: [{kind: drop, rate: 2}]", "<= 1"),
        ("lives: [{life: created}, {life: 'created, created'}]", "once"),
        ("lives: [{life: created}, {life: 'created, verified, canceled'}]", "cannot be led"),
        ("lives: [{life: 'created, verified, verified'}]", "cannot be led"),
        ("lives: [{life: 'created, canceled, verified'}]", "cannot be led"),
        ("lives: [{life: 'created, processing, processing'}]", "cannot be led"),
        ("lives: [{life: 'created, processing, redacted'}]", "cannot be led"),
        ("lives: [{life: 'created, redacted, verified'}]", "cannot be led"),
        ("lives: [{life: created, share: -1}]", ">= 0"),
        ("lives: [{life: created, share: 0}]", "greater than zero"),
        ("lives: [{life: created, share: .nan}]", ">= 0"),
        ("lives: [{life: 'created, 300d, 300d, verified'}]", "a year"),
        ("lives: [{life: created}]\nsessions: 400\nevery: 1d", "a year"),
        ("lives: " + "[" * 2000, "recursion"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read(file)


def test_the_page_s_example_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "sandbox.md").read_text()
    file = tmp_path / "scenario.yaml"
    file.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    assert read(file).sessions == 20
