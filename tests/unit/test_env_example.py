import re
from pathlib import Path

from dev.env_example import render
from service.settings import Settings

TRACKED = Path(__file__).parents[2] / "deploy/env.example"


def test_the_tracked_file_is_current():
    assert TRACKED.read_text(encoding="utf-8") == render(), "run `make env-example`"


def test_it_shows_every_setting_as_it_is_without_the_file(monkeypatch):
    shown = dict(re.findall(r"^(?:# )?([A-Z_]+)=(\S*)$", render(), re.MULTILINE))
    for name in shown:
        monkeypatch.delenv(name, raising=False)
    without = Settings.load("tool")
    for name, value in shown.items():
        monkeypatch.setenv(name, value)

    assert Settings.load("tool") == without
    assert len(shown) == len(Settings.model_fields)
