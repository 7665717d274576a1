"""A real Prometheus with the rules that are shipped, and promtool."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"


def installed(name: str) -> str:
    """Return where a program is; without it the test fails in CI, and is left out elsewhere."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"CI has to have {name} (Debian: apt install prometheus)")
        pytest.skip(f"no {name} on this machine (Debian: apt install prometheus)")
    return found


@pytest.fixture
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run promtool with these arguments."""
    program = installed("promtool")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=60, check=False
        )

    return run


class Prometheus:
    """A Prometheus without a past, which scrapes one web process every half a second.

    Its rules are the shipped ones, without the time that a state has to last (`for:`), which
    promtool tests.
    """

    def __init__(self, processes: Any, folder: Path, port: int, target: int) -> None:
        folder.mkdir()
        rules = re.sub(r"^ *for: .*\n", "", RULES.read_text(), flags=re.MULTILINE)
        (folder / "alerts.yml").write_text(rules)
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 500ms, evaluation_interval: 500ms}\n"
            "rule_files: [alerts.yml]\n"
            "scrape_configs:\n"
            "  - job_name: identity-webhooks\n"
            f"    static_configs: [{{targets: ['127.0.0.1:{target}']}}]\n"
        )
        self._url = f"http://127.0.0.1:{port}"
        self.process, self.log = processes.start(
            installed("prometheus"),
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        )

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire; none while it starts."""
        try:
            answer = requests.get(f"{self._url}/api/v1/alerts", timeout=5).json()
        except (requests.RequestException, ValueError):
            return set()
        alerts = answer["data"]["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}

    def value(self, query: str) -> list[float]:
        """Return the values that a query has now."""
        try:
            answer = requests.get(f"{self._url}/api/v1/query", {"query": query}, timeout=5).json()
        except (requests.RequestException, ValueError):
            return []
        return [float(each["value"][1]) for each in answer["data"]["result"]]


@pytest.fixture
def prometheus(
    processes: Any, tmp_path: Path, free_port: Callable[[], int]
) -> Callable[[int], Prometheus]:
    """Start a Prometheus for the web process at this port; the one before it is stopped."""
    started: list[Prometheus] = []

    def start(target: int) -> Prometheus:
        if started:
            started[-1].process.terminate()
            started[-1].process.wait(20)
        folder = tmp_path / f"prometheus-{len(started)}"
        started.append(Prometheus(processes, folder, free_port(), target))
        return started[-1]

    return start
