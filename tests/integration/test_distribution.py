"""What a plugin installs when it depends on `identity-webhooks`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from service.version import version
from tests.conftest import ROOT

LOADED = """
import json, sys
sys.path.insert(0, sys.argv[1])
import identity_webhooks
names = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([identity_webhooks.__file__, sorted(names)]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, *offline, "-w", folder, ROOT], check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


def test_its_version_is_that_of_the_service(wheel) -> None:
    assert wheel.name.split("-")[1] == version()


def test_it_holds_one_package_with_its_types(wheel) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "identity_webhooks",
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }
    assert "identity_webhooks/py.typed" in names


def test_it_depends_on_little(wheel) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = archive.read(path).decode()
    needed = re.findall(r"^Requires-Dist: ([\w-]+)(.*)$", metadata, re.MULTILINE)
    assert {name for name, rest in needed if "extra ==" not in rest} == {"stripe", "structlog"}


def test_importing_it_loads_neither_the_sdk_nor_anything_of_the_service(wheel, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOADED, wheel],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    file, loaded = json.loads(done.stdout)
    assert file.startswith(str(wheel))
    service = {"flask", "gunicorn", "msgspec", "pydantic", "redis", "rq", "service", "workers"}
    assert not set(loaded) & (service | {"stripe", "pydantic_settings", "prometheus_client"})
