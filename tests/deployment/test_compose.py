"""compose.yaml, the image's recipe and the systemd unit fit the product and each other."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # read for what is then checked

from tests.deployment.checkers import checker
from whispr.config import SERVICES as NAMES
from whispr.config import load

CONFIG = Path(__file__).parents[2] / "config"
DOCKER = CONFIG / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
UNIT = CONFIG / "systemd" / "whispr.service"


def seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s", text)
    assert match, text
    return int(match[1])


@pytest.mark.parametrize("name", SERVICES)
def test_containers_can_do_little(name: str) -> None:
    """A read-only root, no capabilities, no new privileges, a check of its health, and no unbounded log."""
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"]["max-size"]
    assert "healthcheck" in service or name == "whispr", "the image has one of its own"


def test_what_is_named_is_there() -> None:
    """Secrets, volumes, files and services that something names; a dependency is waited for until it is healthy."""
    for service in SERVICES.values():
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys()
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            there = (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
            assert there, source
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICES
            assert how == {"condition": "service_healthy"}
        for key, value in service.get("environment", {}).items():
            if value.startswith("/run/secrets/"):
                assert Path(value).name in service["secrets"], key


def test_secrets_are_made(tmp_path: Path) -> None:
    """The script makes every secret that is named, in a folder that nobody else enters, and makes none anew."""
    first: dict[str, str] = {}
    for _ in range(2):
        subprocess.run([str(DOCKER / "make-secrets"), str(tmp_path / "secrets")], check=True)
        found = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
        assert {Path(each["file"]).name for each in COMPOSE["secrets"].values()} <= found.keys()
        assert not [name for name in found if name.endswith(".new")]
        assert found["postgres_password"] in found["postgres_url"]
        assert found["valkey_password"] in found["redis_url"]
        assert found["valkey_password"] in found["valkey.conf"]
        assert found["nats_password"] in found["nats_url"]
        assert found["nats_password"] in found["nats.conf"]
        first = first or found
        assert found == first
    nats = Path(sysconfig.get_path("scripts")) / "nats-server"
    subprocess.run(
        [str(nats), "-t", "-c", str(tmp_path / "secrets" / "nats.conf")], check=True, capture_output=True
    )
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


def test_the_product_takes_its_variables(tmp_path: Path) -> None:
    """Every variable is a setting, those of the image, too; and it is given the time to drain."""
    subprocess.run([str(DOCKER / "make-secrets"), str(tmp_path)], check=True)
    image = dict(re.findall(r"(WHISPR_\w+)=(\S+)", (DOCKER / "Dockerfile").read_text()))
    own = SERVICES["whispr"]["environment"]
    environ = image | {k: v.replace("/run/secrets", str(tmp_path)) for k, v in own.items()}
    settings = load(environ).settings
    assert settings.postgres.url.startswith("postgresql://whispr:")
    assert settings.host == "0.0.0.0"  # noqa: S104  # in a container
    assert seconds(SERVICES["whispr"]["stop_grace_period"]) > settings.drain_s + settings.drain_notice_s + 10
    assert f"{settings.stream.webrtc_port}:{settings.stream.webrtc_port}/udp" in SERVICES["whispr"]["ports"]
    exposed = {*re.search(r"EXPOSE (.*)", (DOCKER / "Dockerfile").read_text())[1].split()}  # type: ignore[index]
    listeners = ("gateway", "websocket", *NAMES)
    assert exposed == {str(getattr(settings, name).port) for name in listeners}


def test_prometheus_and_grafana_find_what_they_show() -> None:
    """Prometheus scrapes the product under the name that the alerts know; Grafana has it as its source."""
    prometheus = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["whispr:8080"]}]
    assert f'job="{job["job_name"]}"' in (CONFIG / "prometheus" / "rules.yml").read_text()
    assert prometheus["rule_files"] == ["rules.yml"]
    (source,) = yaml.safe_load((DOCKER / "grafana" / "datasources.yaml").read_text())["datasources"]
    assert (source["url"], source["type"]) == ("http://prometheus:9090", "prometheus")
    folder = yaml.safe_load((DOCKER / "grafana" / "dashboards.yaml").read_text())["providers"][0]["options"][
        "path"
    ]
    assert f"../grafana:{folder}:ro" in SERVICES["grafana"]["volumes"]
    assert json.loads((CONFIG / "grafana" / "whispr.json").read_text())["title"] == "Whispr"


@pytest.mark.slow
def test_the_schema_of_compose_holds() -> None:
    """compose.yaml is valid by the Compose specification's schema."""
    command = [
        str(checker("check-jsonschema")),
        "--builtin-schema",
        "vendor.compose-spec",
        str(DOCKER / "compose.yaml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# systemd


def unit_values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_the_unit_gives_time_to_drain() -> None:
    """It kills later than the product is done with draining; its variables are settings."""
    environ = dict(pair.split("=", 1) for line in unit_values("Environment") for pair in line.split())
    settings = load(environ).settings
    (patience,) = unit_values("TimeoutStopSec")
    assert int(patience) > settings.drain_s + settings.drain_notice_s + 10
    assert "WHISPR_CONFIG=/etc/whispr/whispr.toml" in UNIT.read_text(), "nobody else would read it"
    assert unit_values("StateDirectory") == [settings.data_dir.name]


@pytest.mark.slow
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """systemd-analyze finds nothing to say of it, and rates what it could do if taken over as low."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = shutil.which("true") or "/bin/true"
    copy = tmp_path / "whispr.service"
    copy.write_text(UNIT.read_text().replace("/opt/whispr/bin/whispr", program))
    verify = ["systemd-analyze", "verify", str(copy)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    security = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(copy)]
    done = subprocess.run(security, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
