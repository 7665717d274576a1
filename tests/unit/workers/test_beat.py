"""The file by which `python -m workers health` knows that a process of the workers lives."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from workers import beat
from workers.__main__ import main


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, which is not there yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"identity-webhooks-workers-{os.getuid()}"


def make_older(file: Path, seconds: float) -> None:
    at = file.lstat().st_mtime - seconds
    os.utime(file, (at, at), follow_symlinks=False)


def test_each_beat_renews_it_and_the_end_removes_it(file: Path) -> None:
    assert beat.age() is None
    for _ in range(2):
        beat.beat()
        age = beat.age()
        assert age is not None
        assert 0 <= age < 1000
        make_older(file, 5000)
        age = beat.age()
        assert age is not None
        assert 5000 <= age < 6000
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for _ in range(2):  # another process of the same user may have been first
        beat.end()
        assert beat.age() is None
        assert not file.exists()


def test_one_of_the_future_is_of_now(file: Path) -> None:
    """The clock of the machine was set back since."""
    beat.beat()
    make_older(file, -5000)
    assert beat.age() == 0


def test_each_user_has_a_file_of_ones_own(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beat.beat()
    monkeypatch.setattr(os, "getuid", lambda: 123_456)
    assert beat.age() is None


def test_no_link_of_another_user_is_followed(file: Path, tmp_path: Path) -> None:
    """Everyone may make one in the directory for temporary files."""
    other = tmp_path / "other"
    file.symlink_to(other)
    beat.beat()
    assert not other.exists()
    other.touch()
    make_older(other, 5000)
    before = other.stat().st_mtime
    beat.beat()
    assert other.stat().st_mtime == before
    other.write_text("fresh")
    make_older(file, 5000)
    age = beat.age()
    assert age is not None
    assert age >= 5000, "its own, not that of what it leads to"


def test_where_it_cannot_be_written_nothing_fails_and_there_is_none(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    beat.beat()
    assert beat.age() is None
    beat.end()


@pytest.mark.parametrize(
    ("age", "code", "said"),
    [
        (0.0, 0, "healthy: the last beat was 0 s ago"),
        (100.0, 0, "healthy: the last beat was 100 s ago"),
        (140.0, 1, "not healthy: the last beat was 140 s ago"),
        (None, 1, "not healthy: the last beat was never"),
    ],
)
def test_health_is_told_by_its_age(monkeypatch: pytest.MonkeyPatch, age, code, said) -> None:
    """The name of Redis may take a minute to be looked up, in which there is no beat."""
    monkeypatch.setattr(beat, "age", lambda: age)
    done = CliRunner().invoke(main, ["health"])
    assert done.exit_code == code
    assert (done.stderr if code else done.stdout) == f"{said}\n"
    assert (done.stdout if code else done.stderr) == ""
