"""deploy/kubernetes: valid to Kubernetes itself, and true to what the tracker takes and serves."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tracker.api.routes import OPERATIONS
from tracker.cli.serve import SHUTDOWN_SECONDS
from tracker.cli.workers import STRAGGLER_SECONDS
from tracker.settings import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kubernetes_validate  # type: ignore[import-untyped]

FOLDER = Path(__file__).parent.parent / "deploy" / "kubernetes"
VERSION = kubernetes_validate.latest_version()
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS: dict[str, Any] = {name: yaml.safe_load((FOLDER / name).read_text()) for name in KUSTOMIZATION["resources"]}
A_LOOK_AT_SIGNALS = 0.5

POD = MANIFESTS["deployment.yaml"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_each_manifest_is_valid(name: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], VERSION, strict=True)


def test_the_validator_sees_what_is_wrong() -> None:
    wrong = {**MANIFESTS["service.yaml"], "spec": {"ports": [{"port": "http", "prot": 1}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_the_kustomization_has_every_file() -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} == {"kustomization.yaml", *MANIFESTS}


def test_all_select_the_same_pods_by_the_same_name() -> None:
    labels = MANIFESTS["deployment.yaml"]["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS["deployment.yaml"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["service.yaml"]["spec"]["selector"] == labels
    assert MANIFESTS["poddisruptionbudget.yaml"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["networkpolicy.yaml"]["spec"]["podSelector"]["matchLabels"] == labels
    target = MANIFESTS["horizontalpodautoscaler.yaml"]["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "tracker"}
    names = {name: manifest["metadata"]["name"] for name, manifest in MANIFESTS.items()}
    assert set(names.values()) == {"tracker"}
    references = [next(iter(source.values()))["name"] for source in CONTAINER["envFrom"]]
    assert references == ["tracker", "tracker"]


def test_what_is_configured_are_settings_with_good_values() -> None:
    environment = {**MANIFESTS["configmap.yaml"]["data"], **MANIFESTS["secret.yaml"]["stringData"]}
    assert Settings.unknown_variables(environment) == []
    settings = Settings.load({**environment, "TRACKER_API_KEYS": "a-key"})
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == settings.port
    assert MANIFESTS["service.yaml"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_no_key_is_committed() -> None:
    assert set(MANIFESTS["secret.yaml"]["stringData"].values()) == {""}


def test_the_probes_ask_for_what_is_served() -> None:
    paths = {operation.path for operation in OPERATIONS if operation.method == "GET"}
    probes = {name: CONTAINER[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert set(probes.values()) <= paths
    assert probes["livenessProbe"] == "/health", "a restart would not bring an absent Redis back"
    assert probes["readinessProbe"] == "/ready"


def test_a_pod_serves_on_while_others_learn_that_it_goes_and_then_has_time_to_end_in_order() -> None:
    """A runner heartbeats every five seconds: each gets an answer that sends it elsewhere."""
    drain = float(MANIFESTS["configmap.yaml"]["data"]["TRACKER_DRAIN_SECONDS"])
    assert drain > 5
    assert POD["terminationGracePeriodSeconds"] > drain + SHUTDOWN_SECONDS + STRAGGLER_SECONDS + A_LOOK_AT_SIGNALS


def test_a_rollout_takes_no_pod_away_before_its_heir_is_ready() -> None:
    assert MANIFESTS["deployment.yaml"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_pods_have_no_more_rights_than_they_need() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["automountServiceAccountToken"] is False
    context = CONTAINER["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
