"""The Kubernetes manifests fit each other and the product: what names something names what is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # read for what is then checked
from prometheus_client import REGISTRY

import whispr.node  # noqa: F401  # with all that a process measures
from tests.deployment.checkers import checker
from whispr.config import SERVICES, Settings, load

K8S = Path(__file__).parents[2] / "config" / "k8s"
BASE, MUTUAL_TLS, WEBRTC = (K8S / name for name in ("base", "mutual-tls", "webrtc"))


def resources(folder: Path) -> Iterator[Any]:
    """Every resource that a kustomization names, by its files and in its namespace; patches are not applied."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    named = {folder / name for name in kustomization["resources"]}
    patches = {folder / patch["path"] for patch in kustomization.get("patches", ())}
    there = set(folder.glob("*.yaml")) - {folder / "kustomization.yaml"}
    assert there == {path for path in named if path.is_file()} | patches, (
        "a file that is not named does nothing"
    )
    for path in sorted(named):
        if path.is_dir():
            yield from resources(path)
        else:
            yield from yaml.safe_load_all(path.read_text())


ALL = [*resources(MUTUAL_TLS)]


def of_kind(*kinds: str) -> list[Any]:
    return [each for each in ALL if each["kind"] in kinds]


WORKLOADS = of_kind("Deployment", "Job")
TEMPLATES = {each["metadata"]["name"]: each["spec"]["template"] for each in WORKLOADS}
SETTINGS: Mapping[str, str] = of_kind("ConfigMap")[0]["data"]


def containers(template: Any) -> list[Any]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def chosen(labels: Mapping[str, str]) -> list[Any]:
    """The pods that a selector finds."""
    return [t for t in TEMPLATES.values() if labels.items() <= t["metadata"]["labels"].items()]


def test_every_name_is_told_once() -> None:
    """No resource is there twice."""
    names = [(each["kind"], each["metadata"]["name"]) for each in ALL]
    assert len(names) == len(set(names))


def test_every_service_has_what_belongs_to_it() -> None:
    """A Deployment, a headless Service, a budget, an autoscaler for each service of the product, and no other."""
    wanted = {f"whispr-{name}" for name in SERVICES}
    assert {each["metadata"]["name"] for each in of_kind("Deployment")} == wanted
    assert {each["metadata"]["name"] for each in of_kind("PodDisruptionBudget")} == wanted
    assert {each["spec"]["scaleTargetRef"]["name"] for each in of_kind("HorizontalPodAutoscaler")} == wanted
    headless = [each for each in of_kind("Service") if each["spec"].get("clusterIP") == "None"]
    assert {each["metadata"]["name"] for each in headless} == wanted


def test_selectors_find_pods() -> None:
    """Each selector finds pods; a headless Service, a budget and a Deployment those of their own service alone."""
    for each in of_kind("Service"):
        found = chosen(each["spec"]["selector"])
        assert found, each["metadata"]["name"]
        if each["spec"].get("clusterIP") == "None":
            assert found == [TEMPLATES[each["metadata"]["name"]]]
    for each in of_kind("PodDisruptionBudget", "Deployment"):
        assert chosen(each["spec"]["selector"]["matchLabels"]) == [TEMPLATES[each["metadata"]["name"]]]
    for each in of_kind("NetworkPolicy"):
        labels = each["spec"]["podSelector"].get("matchLabels", {})
        assert chosen(labels), each["metadata"]["name"]
    for template in TEMPLATES.values():
        for spread in template["spec"].get("topologySpreadConstraints", ()):
            assert chosen(spread["labelSelector"]["matchLabels"]) == [template]


def test_ports_are_there() -> None:
    """A port named by a Service, a probe or a policy is one of the pods it is about."""
    for each in of_kind("Service"):
        for template in chosen(each["spec"]["selector"]):
            ports = {p["name"] for c in containers(template) for p in c.get("ports", ())}
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
    for template in TEMPLATES.values():
        for container in containers(template):
            ports = {port["name"] for port in container.get("ports", ())}
            probes = [container[name]["httpGet"] for name in container if name.endswith("Probe")]
            assert {probe["port"] for probe in probes} <= ports
    every = {p["name"] for t in TEMPLATES.values() for c in containers(t) for p in c.get("ports", ())}
    for each in of_kind("NetworkPolicy"):
        for rule in each["spec"].get("ingress", ()):
            assert {port["port"] for port in rule["ports"]} <= every


def test_services_may_reach_each_other() -> None:
    """The policy between services lets every gRPC port pass, and the pods listen where the product does."""
    (policy,) = [e for e in of_kind("NetworkPolicy") if e["metadata"]["name"] == "whispr-between-services"]
    spans = [(p["port"], p.get("endPort", p["port"])) for r in policy["spec"]["egress"] for p in r["ports"]]
    settings = settings_of("whispr-auth")
    for name in SERVICES:
        (container,) = TEMPLATES[f"whispr-{name}"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["grpc"] == getattr(settings, name).port
        assert (ports["http"], ports.get("websocket", 4000)) == (
            settings.gateway.port,
            settings.websocket.port,
        )
        assert any(low <= ports["grpc"] <= high for low, high in spans)
        assert getattr(settings, name).endpoint == f"dns:///whispr-{name}:{ports['grpc']}"
        assert container["args"] == ["serve", name]


URLS = {
    "WHISPR_POSTGRES_URL": "postgres://db",
    "WHISPR_REDIS_URL": "redis://cache",
    "WHISPR_NATS_URL": "nats://bus",
}


def settings_of(name: str) -> Settings:
    """What the product makes of a pod's variables; URLs stand in for the files that secrets bring."""
    (container,) = TEMPLATES[name]["spec"]["containers"]
    (patch,) = yaml.safe_load((MUTUAL_TLS / "deployment.yaml").read_text())["spec"]["template"]["spec"][
        "containers"
    ]
    assert patch["name"] == container["name"]
    environ = dict(SETTINGS)
    for each in chain(container["env"], patch["env"]):
        name = each["name"].removesuffix("_FILE")
        if name in URLS:
            environ[name] = URLS[name]
        else:
            environ[each["name"]] = each.get("value", "")
    return load({k: v for k, v in environ.items() if k.startswith("WHISPR_")}).settings


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_product_takes_the_variables(name: str) -> None:
    """Every variable is a setting, with a value that it may have."""
    settings = settings_of(name)
    assert settings.rpc.tls_authorities is not None
    assert str(settings.data_dir) == "/data"


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n != "whispr-migrate"])
def test_pods_are_given_the_time_to_drain(name: str) -> None:
    """Kubernetes kills a pod later than the product itself is done with draining."""
    settings = settings_of(name)
    assert TEMPLATES[name]["spec"]["terminationGracePeriodSeconds"] > (
        settings.drain_notice_s + settings.drain_s + 10
    )
    (container,) = TEMPLATES[name]["spec"]["containers"]
    paths = {kind: container[kind]["httpGet"]["path"] for kind in container if kind.endswith("Probe")}
    assert paths == {"startupProbe": "/startupz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_pods_can_do_little(name: str) -> None:
    """Not root, nothing to write but volumes, no capability, no token of the cluster, bounded resources."""
    spec = TEMPLATES[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"], "WHISPR_AUTH_PORT would be Kubernetes'"
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in containers(TEMPLATES[name]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("hostPort" in port for port in container.get("ports", ())), "no standard allows that"
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_ports_of_nodes_are_of_a_component() -> None:
    """WebRTC's pods are let in by the namespace, replace each other on their nodes, and tell clients of these."""
    labels = yaml.safe_load((WEBRTC / "namespace.yaml").read_text())["metadata"]["labels"]
    spec = yaml.safe_load((WEBRTC / "stream.yaml").read_text())["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (port,) = container["ports"]
    (own,) = [p for p in containers(TEMPLATES["whispr-stream"])[-1]["ports"] if p["name"] == port["name"]]
    assert of_kind("Namespace")[0]["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert port == {**own, "hostPort": settings_of("whispr-stream").stream.webrtc_port}
    assert [each["name"] for each in container["env"]] == ["WHISPR_STREAM_WEBRTC_ADDRESSES"]


def test_secrets_are_documented() -> None:
    """Every secret and key of one that a pod wants is in the README beside, and every key there is wanted."""
    said = (K8S / "README.md").read_text()
    rows = [line for line in said.splitlines() if line.startswith("|")]
    documented = set(re.findall(r"`([a-z0-9_-]+)`", " ".join(row.rsplit("|", 2)[0] for row in rows)))
    wanted: set[str] = set()
    for template in [
        *TEMPLATES.values(),
        yaml.safe_load((MUTUAL_TLS / "deployment.yaml").read_text())["spec"]["template"],
    ]:
        wanted |= {v["secret"]["secretName"] for v in template["spec"]["volumes"] if "secret" in v}
        for container in containers(template):
            for each in container.get("env", ()):
                if "secretKeyRef" in each.get("valueFrom", {}):
                    wanted |= {each["valueFrom"]["secretKeyRef"][key] for key in ("name", "key")}
                elif each.get("value", "").startswith("/secrets/"):
                    wanted.add(each["value"].removeprefix("/secrets/"))
            wanted |= {
                word.removeprefix("/secrets/") for word in container.get("command", ()) if "/secrets/" in word
            }
    wanted |= {each["spec"]["secretName"] for each in of_kind("Certificate")}
    assert documented == wanted


def test_autoscalers_count_what_is_measured() -> None:
    """The custom metrics are of `/metrics`, and of the pods that have sockets."""
    measured = {name for metric in REGISTRY.collect() for name in (metric.name,)}
    for each in of_kind("HorizontalPodAutoscaler"):
        name = each["spec"]["scaleTargetRef"]["name"]
        kinds = {metric["type"] for metric in each["spec"]["metrics"]}
        sockets = TEMPLATES[name]["metadata"]["labels"]["whispr/sockets"] == "true"
        assert kinds == ({"Resource", "Pods"} if sockets else {"Resource"})
        for metric in each["spec"]["metrics"]:
            assert metric["type"] == "Resource" or metric["pods"]["metric"]["name"] in measured


@pytest.mark.slow
def test_the_schemas_of_kubernetes_hold() -> None:
    """Each manifest of ours is valid by Kubernetes' own schemas, strictly."""
    files = [path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml"]
    done = subprocess.run(
        [str(checker("kubernetes-validate")), "--strict", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("folder", [BASE, MUTUAL_TLS], ids=lambda path: path.name)
@pytest.mark.parametrize("webrtc", [False, True])
def test_kustomize_builds(folder: Path, webrtc: bool, tmp_path: Path) -> None:
    """What kustomize makes of it, images and patches applied, is valid too; certificates are cert-manager's."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    shutil.copytree(K8S, tmp_path / "k8s")
    own: dict[str, Any] = {"resources": [f"../k8s/{folder.name}"]}
    if webrtc:
        own["components"] = ["../k8s/webrtc"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "kustomization.yaml").write_text(yaml.safe_dump(own))
    command = ["kubectl", "kustomize", str(tmp_path / "own")]
    built = subprocess.run(command, capture_output=True, text=True, check=True)
    assert built.stdout.count("hostPort: 50062") == built.stdout.count("enforce: privileged") == int(webrtc)
    docs = [each for each in yaml.safe_load_all(built.stdout) if "cert-manager" not in each["apiVersion"]]
    (tmp_path / "built.yaml").write_text(yaml.safe_dump_all(docs))
    command = [str(checker("kubernetes-validate")), "--strict", str(tmp_path / "built.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for each in docs:
        if each["kind"] != "Deployment":
            continue
        spec = each["spec"]["template"]["spec"]
        assert spec["containers"][0]["image"] == "whispr:0.1.0"
        assert any(v["name"] == "tls" for v in spec["volumes"]) is (folder == MUTUAL_TLS)
        mounts = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
        assert {"data", "secrets", "temporary"} <= mounts
