"""What workers need is tried before they start: nothing that scripts run is left out."""

from __future__ import annotations

import re

from service.inbox import probe, scripts


def test_every_command_of_the_scripts_is_tried() -> None:
    run = {
        name
        for source in scripts.sources().values()
        for name in re.findall(r"redis\.p?call\('(\w+)'", source)
    }
    assert len(run) > 20
    assert run <= probe.COMMANDS.keys()
    assert probe.COMMANDS.keys() - run == {"BLMOVE"}


def test_what_is_tried_leaves_nothing_behind() -> None:
    keys = {
        str(args[0])
        for name, args in probe.COMMANDS.items()
        if args and str(args[0]).startswith("iw:probe:")
    }
    assert keys == set(probe.COMMANDS["DEL"])
    assert list(probe.COMMANDS)[-1] == "DEL"
