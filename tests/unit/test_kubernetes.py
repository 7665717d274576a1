"""deploy/kubernetes: valid for Kubernetes' own schemas, and in step with the code.

Rendered by kustomize, or by kubectl, which holds it. Where neither is, the files are read as they
stand, before the changes of the overlay, and the tests that need those are left out.
"""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from rq import Queue

from dev.local import procfile
from service.app import WEBHOOK_PATH
from service.inbox.keys import QUEUE
from service.settings import Settings
from workers.supervisor import KILL_AFTER

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
ROLES = ("web", "worker", "periodic")
KEDA = "keda.sh/v1alpha1"
SECRETS = {"STRIPE_WEBHOOK_SECRET": {"web"}, "STRIPE_API_KEY": {"worker", "periodic"}}
SECRETS |= {"REDIS_URL": set(ROLES)}

Manifest = dict[str, Any]


def kustomize() -> list[str]:
    """Return the command that renders a folder; none where it is not installed."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return ["kubectl", "kustomize"] if shutil.which("kubectl") else []


@cache
def manifests(overlay: str) -> list[Manifest]:
    folder = FOLDER / "overlays" / overlay
    if command := kustomize():
        text = subprocess.check_output([*command, folder], text=True, timeout=120)
        return list(yaml.safe_load_all(text))
    files = [*FOLDER.glob("base/*.yaml"), *folder.glob("*.yaml")]
    return [
        each
        for file in files
        if file.name != "kustomization.yaml"
        for each in yaml.safe_load_all(file.read_text(encoding="utf-8"))
    ]


def of_kind(overlay: str, kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in manifests(overlay) if m["kind"] == kind}


def pod(overlay: str, role: str) -> Manifest:
    found: Manifest = of_kind(overlay, "Deployment")[role]["spec"]["template"]
    return found


def container(overlay: str, role: str) -> Manifest:
    (found,) = pod(overlay, role)["spec"]["containers"]
    return dict(found)


each_overlay = pytest.mark.parametrize("overlay", ["dev", "prod"])
each_role = pytest.mark.parametrize("role", ROLES)


@each_overlay
def test_kubernetes_takes_them(overlay) -> None:
    version = kubernetes_validate.latest_version()
    own = [m for m in manifests(overlay) if m["apiVersion"] != KEDA]
    assert len(own) > 8
    for manifest in own:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_would_notice() -> None:
    wrong = json.loads(json.dumps(of_kind("prod", "Deployment")["web"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessprobe"):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@each_overlay
@each_role
def test_a_pod_runs_what_the_procfile_says(overlay, role) -> None:
    command = shlex.split(procfile(ROOT / "Procfile")[role])
    if role == "web":  # the image's own
        assert "command" not in container(overlay, role)
        assert f"CMD {json.dumps(command)}" in (ROOT / "deploy/Dockerfile").read_text("utf-8")
    else:
        assert container(overlay, role)["command"] == command


@each_overlay
def test_a_pod_may_do_little(overlay) -> None:
    for name, deployment in of_kind(overlay, "Deployment").items():
        spec = deployment["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for each in spec["containers"]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert each["resources"]["limits"]["memory"], name
            assert each["resources"]["requests"].keys() == {"cpu", "memory"}, name


@each_role
def test_no_restart_for_the_trouble_of_redis(role) -> None:
    probes = container("prod", role)
    if role == "web":
        alive: Manifest = {"httpGet": {"path": "/healthz", "port": "http"}}
        assert probes["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    else:
        alive = {"exec": {"command": ["python", "-m", "workers", "health"]}}
    for probe in ("startupProbe", "livenessProbe"):
        assert alive.items() <= probes[probe].items()


@each_role
def test_the_grace_period_is_long_enough(role) -> None:
    grace = pod("prod", role)["spec"]["terminationGracePeriodSeconds"]
    if role == "web":
        gunicorn = (ROOT / "deploy/gunicorn.conf.py").read_text(encoding="utf-8")
        (line,) = (x for x in gunicorn.splitlines() if x.startswith("graceful_timeout = "))
        assert int(line.split()[2]) < grace
    else:
        assert grace > KILL_AFTER


@each_overlay
@each_role
def test_each_role_gets_its_own_secrets_only(overlay, role) -> None:
    names = {each["name"] for each in container(overlay, role)["env"]}
    assert {name.removesuffix("_FILE") for name in names - {"PORT"}} == {
        secret for secret, roles in SECRETS.items() if role in roles
    }
    volumes = {volume["name"]: volume for volume in pod(overlay, role)["spec"]["volumes"]}
    secret = volumes["secrets"]["secret"]["secretName"]
    assert secret.startswith("web" if role == "web" else "worker")


@pytest.mark.skipif(not kustomize(), reason="neither kustomize nor kubectl is here")
@each_role
def test_the_settings_of_dev_are_complete(role, monkeypatch) -> None:
    (settings,) = of_kind("dev", "ConfigMap").values()
    (secret,) = (
        secret["data"]
        for name, secret in of_kind("dev", "Secret").items()
        if name.startswith("web-" if role == "web" else "worker-")
    )

    given = settings["data"] | {k: base64.b64decode(v).decode() for k, v in secret.items()}
    for name in [name.upper() for name in Settings.model_fields]:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        assert name.lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    assert Settings.load("web" if role == "web" else "worker").livemode is False


@pytest.mark.skipif(not kustomize(), reason="neither kustomize nor kubectl is here")
@each_overlay
def test_selectors_find_their_pods(overlay) -> None:
    labels = {
        name: pod(overlay, name)["metadata"]["labels"] for name in of_kind(overlay, "Deployment")
    }
    for name, deployment in of_kind(overlay, "Deployment").items():
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
    for kind, key in (("Service", "selector"), ("PodDisruptionBudget", "selector")):
        for name, manifest in of_kind(overlay, kind).items():
            wanted = manifest["spec"][key]
            assert wanted.get("matchLabels", wanted).items() <= labels[name].items()
    guarded = [
        name
        for policy in of_kind(overlay, "NetworkPolicy").values()
        for name, has in labels.items()
        if selects(policy["spec"]["podSelector"], has)
    ]
    assert sorted(guarded) == sorted(set(labels) - {"sandbox"})  # which is for everyone


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", [])
    )


def test_a_node_can_be_drained() -> None:
    budgets = of_kind("prod", "PodDisruptionBudget")
    web = of_kind("prod", "HorizontalPodAutoscaler")["web"]["spec"]
    assert budgets["web"]["spec"]["minAvailable"] < web["minReplicas"]
    assert budgets["worker"]["spec"]["maxUnavailable"] == 1


def test_the_workers_scale_on_what_waits_for_them() -> None:
    scaled = of_kind("prod", "ScaledObject")["worker"]["spec"]
    (trigger,) = scaled["triggers"]
    assert scaled["scaleTargetRef"]["name"] in of_kind("prod", "Deployment")
    assert "replicas" not in of_kind("prod", "Deployment")["worker"]["spec"]
    assert trigger["type"] == "redis"
    assert trigger["metadata"]["listName"] == Queue.redis_queue_namespace_prefix + QUEUE
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    authentication = of_kind("prod", "TriggerAuthentication")[trigger["authenticationRef"]["name"]]
    parameters = {each["parameter"] for each in authentication["spec"]["secretTargetRef"]}
    assert parameters == {"username", "password"}


def test_the_world_reaches_the_hook_only() -> None:
    (ingress,) = of_kind("prod", "Ingress").values()
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (path["path"], path["pathType"]) == (WEBHOOK_PATH, "Exact")
