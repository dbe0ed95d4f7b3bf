"""`docker-compose.yml` as docker-compose reads it, and what `deploy/Dockerfile` packs. Nothing is started here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from temporalio.envconfig import ClientConfigProfile

PROJECT = Path(__file__).resolve().parents[2]
DOCKERFILE = PROJECT / "deploy" / "Dockerfile"
SECRETS = (
    "WAYBILL_DATABASE_PASSWORD",
    "TEMPORAL_DATABASE_PASSWORD",
    "WAYBILL_CLIENT_TOKEN",
    "WAYBILL_COURIER_TOKEN",
    "WAYBILL_ADMIN_TOKEN",
    "GRAFANA_ADMIN_PASSWORD",
)
OURS = ("migrate", "api", "worker")
IMAGES = {
    "grafana": "grafana/grafana",
    "postgres": "postgres",
    "prometheus": "prom/prometheus",
    "temporal": "temporalio/server",
    "temporal-namespace": "temporalio/admin-tools",
    "temporal-postgres": "postgres",
    "temporal-schema": "temporalio/admin-tools",
    "temporal-ui": "temporalio/ui",
}

needs_docker_compose = pytest.mark.skipif(
    shutil.which("docker-compose") is None,
    reason="docker-compose is not installed (Debian: apt-get install docker-compose)",
)


def _config(**variables: str) -> subprocess.CompletedProcess[str]:
    """What `docker-compose config` says with no environment but these variables, and without anybody's .env."""
    docker_compose = shutil.which("docker-compose")
    assert docker_compose is not None
    environment = {"PATH": os.environ["PATH"], **variables}
    with tempfile.NamedTemporaryFile() as nothing:
        command = [docker_compose, "--env-file", nothing.name, "-f", str(PROJECT / "docker-compose.yml"), "config"]
        return subprocess.run(
            command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(name="services", scope="module")
def _services() -> dict[str, Any]:
    """The rendered services."""
    rendered = _config(**dict.fromkeys(SECRETS, "secret"))
    assert rendered.returncode == 0, rendered.stderr
    # docker-compose 1.29 is a Python program that needs PyYAML; we do not, so its interpreter reads its answer.
    first = Path(shutil.which("docker-compose") or "").read_bytes().split(b"\n", 1)[0]
    python = first.removeprefix(b"#!").decode() if first.startswith(b"#!") else "python3"
    program = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"
    read = subprocess.run(
        [*python.split(), "-c", program], input=rendered.stdout, capture_output=True, text=True, timeout=60, check=True
    )
    services: dict[str, Any] = json.loads(read.stdout)["services"]
    return services


@needs_docker_compose
@pytest.mark.parametrize("secret", SECRETS)
def test_a_missing_secret_is_named(secret: str) -> None:
    given = {name: "secret" for name in SECRETS if name != secret}
    refused = _config(**given)
    assert refused.returncode != 0
    assert f"set {secret}" in refused.stderr


@needs_docker_compose
def test_every_image_is_pinned_or_built_here_and_none_is_the_deprecated_one(services: dict[str, Any]) -> None:
    assert set(services) == {*OURS, *IMAGES}
    for name in OURS:
        assert services[name]["build"]["dockerfile"] == "deploy/Dockerfile"
        assert Path(services[name]["build"]["context"]) == PROJECT
    for name, image in IMAGES.items():
        repository, _, tag = services[name]["image"].partition(":")
        assert repository == image
        assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?", tag)
    tools = {
        services[name]["image"].partition(":")[2] for name in ("temporal", "temporal-schema", "temporal-namespace")
    }
    assert len(tools) == 1, "the schema's tool is of the server's version"


@needs_docker_compose
def test_ports_are_published_on_loopback_only_and_workers_can_be_many(services: dict[str, Any]) -> None:
    published = [str(port) for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 6
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not {"ports", "container_name", "expose"} & set(services["worker"])
    assert all(service.get("network_mode") is None for service in services.values())


@needs_docker_compose
def test_each_service_waits_for_what_it_needs(services: dict[str, Any]) -> None:
    for service in services.values():
        for needed, on in service.get("depends_on", {}).items():
            if on["condition"] == "service_healthy":
                assert "healthcheck" in services[needed]
            else:
                assert on["condition"] == "service_completed_successfully"
                assert services[needed]["restart"] == "on-failure", "a one-shot that ends well is not started again"
    for name in ("api", "worker"):
        assert set(services[name]["depends_on"]) == {"migrate", "temporal-namespace"}


@needs_docker_compose
def test_the_settings_know_every_variable(services: dict[str, Any]) -> None:
    settings = (PROJECT / "settings.py").read_text()
    names = {name for service in OURS for name in services[service]["environment"]}
    names |= set(re.findall(r"\b(WAYBILL_\w+)=", DOCKERFILE.read_text()))
    ours = sorted(name for name in names if name.startswith("WAYBILL_"))
    assert "WAYBILL_API_HOST" in ours
    assert [name for name in ours if f'"{name}"' not in settings] == []


@needs_docker_compose
def test_the_sdk_understands_where_temporal_is(services: dict[str, Any]) -> None:
    for name in ("api", "worker"):
        profile = ClientConfigProfile.load(disable_file=True, override_env_vars=services[name]["environment"])
        assert profile.to_client_connect_config() == {"target_host": "temporal:7233", "namespace": "waybill"}
    assert "namespace create --namespace waybill" in services["temporal-namespace"]["command"][0]


@needs_docker_compose
def test_what_is_mounted_exists(services: dict[str, Any]) -> None:
    sources = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    paths = [Path(source) for source in sources if source.startswith("/")]
    deploy = PROJECT / "deploy"
    grafana = [
        deploy / "grafana" / name for name in ("dashboards", "provisioning/dashboards", "provisioning/datasources")
    ]
    assert sorted(paths) == [*grafana, deploy / "prometheus", deploy / "temporal.yaml"]
    assert all(any(path.glob("*.*")) for path in paths[:-1] if path.is_dir())
    assert (deploy / "temporal.yaml").is_file()


@needs_docker_compose
def test_prometheus_and_grafana_find_what_they_ask(services: dict[str, Any]) -> None:
    configuration = (PROJECT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    assert set(re.findall(r'targets: \["(.*)"\]', configuration)) == {"api:8000"}
    assert re.findall(r'names: \["(\w+)"\]\n +type: A\n +port: (\d+)', configuration) == [
        ("worker", services["worker"]["environment"]["WAYBILL_WORKER_METRICS_PORT"])
    ]
    assert services["worker"]["environment"]["WAYBILL_WORKER_METRICS_HOST"] == "0.0.0.0"  # noqa: S104
    [token_file] = re.findall(r"credentials_file: (.*)", configuration)
    assert f"> {token_file}" in services["prometheus"]["command"][0]
    assert services["prometheus"]["tmpfs"] == [str(Path(token_file).parent)]
    sources = (PROJECT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert "url: http://prometheus:9090" in sources
    [dashboards] = re.findall(
        r"path: (.*)", (PROJECT / "deploy/grafana/provisioning/dashboards/waybill.yml").read_text()
    )
    assert any(f":{dashboards}:ro" in volume for volume in services["grafana"]["volumes"])


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["-m", "db.migrations"], "WAYBILL_DATABASE_URL is not set"),
        (["-m", "api.app"], "WAYBILL_DATABASE_URL is not set"),
        (["worker.py"], "WAYBILL_DATABASE_URL is not set"),
    ],
)
def test_the_image_holds_all_that_its_programs_import(tmp_path: Path, command: list[str], says: str) -> None:
    for line in DOCKERFILE.read_text().splitlines():
        if line.startswith("COPY "):
            *sources, target = line.split()[1:]
            for source in sources:
                _copy(PROJECT / source, tmp_path / target, tmp_path / target / source)
    done = subprocess.run(
        [sys.executable, *command], env={}, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert says in done.stdout + done.stderr
    assert done.returncode in (1, 78)


def _copy(source: Path, target: Path, inside: Path) -> None:
    """As the Dockerfile's COPY: a folder's contents go into the target, a file becomes it or goes into it."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        return
    to = inside if target.is_dir() else target
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, to)


def test_the_image_runs_as_nobody_in_particular_and_installs_by_hash() -> None:
    lines = DOCKERFILE.read_text()
    assert re.search(r"^FROM python:3\.11-slim$", lines, re.MULTILINE)
    assert "--require-hashes -r requirements/run.txt" in lines
    assert re.search(r"^USER (?!root)\w+$", lines, re.MULTILINE)
