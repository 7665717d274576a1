"""deploy/kubernetes/overlays/dev, its pods run by Docker: no cluster is at hand.

Each Deployment becomes one container with the user, the rights, the settings, the Secrets as files
and the command of its pod, and without an init, as in Kubernetes. The probes are asked as the
kubelet asks. What only a cluster does is not seen here: policies, budgets, scaling, rollouts.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe
import yaml

CANARY = "ZyxCanary7Q"
DEV = "deploy/kubernetes/overlays/dev"
KUSTOMIZE = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]

pytestmark = pytest.mark.skipif(
    not shutil.which(KUSTOMIZE[0]), reason="neither kustomize nor kubectl is here"
)


@dataclass
class Pods:
    """The containers of the pods."""

    engine: Any
    folder: Path
    manifests: list[dict[str, Any]]

    def named(self, kind: str) -> dict[str, dict[str, Any]]:
        return {m["metadata"]["name"]: m for m in self.manifests if m["kind"] == kind}

    def spec(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.named("Deployment")[name]["spec"]["template"]["spec"]
        return found

    def secret(self, name: str) -> dict[str, str]:
        data = self.named("Secret")[name]["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def start(self, name: str) -> None:
        spec = self.spec(name)
        (container,) = spec["containers"]
        env = self._environment(container)
        command = [
            re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], part)
            for part in [*container.get("command", []), *container.get("args", [])]
        ]
        user = spec["securityContext"]
        memory = container["resources"]["limits"]["memory"].removesuffix("i").lower()
        self.engine.run(
            *("docker", "run", "--detach", "--name", f"pod-{name}"),
            *("--network", "pods", "--network-alias", name, "--read-only", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges", "--memory", memory),
            *("--user", f"{user['runAsUser']}:{user['runAsGroup']}"),
            *(part for pair in env.items() for part in ("--env", "=".join(pair))),
            *(
                f"--publish=127.0.0.1::{port['containerPort']}"
                for port in container.get("ports", [])
            ),
            *self._volumes(spec, container),
            *(["--entrypoint", command[0]] if command else []),
            container["image"].replace(":latest", ""),
            *command[1:],
        )

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        env: dict[str, str] = {}
        for source in container.get("envFrom", []):
            env |= self.named("ConfigMap")[source["configMapRef"]["name"]]["data"]
        for each in container.get("env", []):
            if "value" in each:
                env[each["name"]] = each["value"]
            else:
                reference = each["valueFrom"]["secretKeyRef"]
                env[each["name"]] = self.secret(reference["name"])[reference["key"]]
        return env

    def _volumes(self, spec: dict[str, Any], container: dict[str, Any]) -> list[str]:
        options = []
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            if "emptyDir" in volume:  # not a tmpfs, which takes the image's mode over
                folder = Path(tempfile.mkdtemp(dir=self.folder))
                folder.chmod(0o777)
                options.append(f"--volume={folder}:{mount['mountPath']}")
                continue
            folder = self.folder / volume["secret"]["secretName"]
            folder.mkdir(exist_ok=True)
            for key, value in self.secret(folder.name).items():
                file = folder / key
                file.write_text(value)
                os.chown(file, 0, spec["securityContext"]["fsGroup"])
                file.chmod(volume["secret"]["defaultMode"])
            options.append(f"--volume={folder}:{mount['mountPath']}:ro")
        return options

    def url(self, name: str, path: str = "") -> str:
        address = self.engine.run("docker", "port", f"pod-{name}").split(" -> ")[1].strip()
        return f"http://{address}{path}"

    def passes(self, name: str, probe: str) -> bool:
        """Ask a probe once, within its time limit; a pod without it passes."""
        asked = self.spec(name)["containers"][0].get(probe)
        if asked is None:
            return True
        limit = asked.get("timeoutSeconds", 1)
        if "exec" in asked:
            command = ["docker", "exec", f"pod-{name}", *asked["exec"]["command"]]
            return subprocess.run(command, check=False, capture_output=True).returncode == 0
        try:
            answer = requests.get(self.url(name, asked["httpGet"]["path"]), timeout=limit)
        except requests.RequestException:
            return False
        return answer.status_code < 400


@pytest.fixture(scope="module")
def pods(engine, tmp_path_factory):
    text = subprocess.check_output([*KUSTOMIZE, engine.folder / DEV], text=True, timeout=60)
    pods = Pods(engine, tmp_path_factory.mktemp("secrets"), list(yaml.safe_load_all(text)))
    engine.run("docker", "network", "create", "pods")
    try:
        for name in pods.named("Deployment"):
            pods.start(name)
        yield pods
    finally:
        for name in pods.named("Deployment"):
            subprocess.run(["docker", "rm", "-f", f"pod-{name}"], check=False, capture_output=True)
        engine.run("docker", "network", "rm", "pods")


def test_every_probe_passes(pods, wait_until) -> None:
    for name in pods.named("Deployment"):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            wait_until(lambda n=name, p=probe: pods.passes(n, p), within=300)


def test_events_come_through(pods, wait_until) -> None:
    api = pods.url("sandbox")
    client = stripe.StripeClient("sk_test_x", base_addresses={"api": api})
    session = client.v1.identity.verification_sessions.create({"type": "document"}).id
    url = f"{api}/_sandbox/sessions/{session}/submit"
    requests.post(url, data={"outcome": "verified"}, timeout=10).raise_for_status()

    def done() -> bool:
        said = pods.engine.run("docker", "exec", "pod-redis", "valkey-cli", "--scan")
        return said.count("iw:done:") == 3

    wait_until(done, within=300)


def test_without_redis_nobody_is_restarted(pods, wait_until) -> None:
    pods.engine.run("docker", "pause", "pod-redis")
    try:
        wait_until(lambda: not pods.passes("web", "readinessProbe"))
        for name in ("web", "worker", "periodic"):
            assert pods.passes(name, "livenessProbe"), name
    finally:
        pods.engine.run("docker", "unpause", "pod-redis")
    wait_until(lambda: pods.passes("web", "readinessProbe"))


@pytest.mark.parametrize("name", ["web", "worker", "periodic"])
def test_a_pod_ends_in_its_grace_period(pods, name) -> None:
    grace = pods.spec(name)["terminationGracePeriodSeconds"]
    begun = time.monotonic()
    pods.engine.run("docker", "stop", "--time", str(grace), f"pod-{name}")
    assert time.monotonic() - begun < grace
    form = "{{.State.ExitCode}}"
    assert pods.engine.run("docker", "inspect", "--format", form, f"pod-{name}").strip() == "0"
