"""`workers.exits`: how a command ends, and what it says where, for each failure."""

from __future__ import annotations

import pytest
import redis

from service.redis_errors import UnsafeRedis
from service.settings import SettingsError
from workers.exits import refuse_or
from workers.plugins import PluginError

REFUSED = "refusing to start: "
# what is raised: (the exit code, what is said)
FAILURES: dict[str, tuple[Exception, int, str]] = {
    "settings": (SettingsError("no key"), 78, f"{REFUSED}no key\n"),
    "a plugin": (PluginError("no handler"), 78, f"{REFUSED}no handler\n"),
    # It is an error of Redis as well, and another one: waiting mends it not.
    "a Redis that loses events": (UnsafeRedis("no file"), 78, f"{REFUSED}no file\n"),
    "Redis away": (redis.ConnectionError("at secret"), 69, "Redis: Redis cannot be reached: "),
    "Redis refuses": (redis.ResponseError("OOM secret"), 69, "Redis: Redis is out of memory: "),
}


@pytest.mark.parametrize(("failure", "code", "said"), FAILURES.values(), ids=FAILURES)
def test_each_failure_has_its_exit_code_and_is_said_on_standard_error(
    failure, code, said, capsys
) -> None:
    def run() -> int:
        raise failure

    with pytest.raises(SystemExit) as ended:
        refuse_or(run)
    answer, told = capsys.readouterr()
    assert (ended.value.code, answer) == (code, "")
    assert told.startswith(said)
    assert len(told.splitlines()) == 1
    assert "secret" not in told


@pytest.mark.parametrize("code", [0, 1])
def test_otherwise_it_ends_with_what_the_command_returned(code, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        refuse_or(lambda: code)
    assert ended.value.code == code
    assert capsys.readouterr() == ("", "")
