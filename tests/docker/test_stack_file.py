"""Checks docker/stack.yaml without an engine: restrictions, secrets, networks, and consistent times."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from service.settings import PREFIX, Settings
from tests.docker.conftest import PROJECT, STACK

if TYPE_CHECKING:
    from pathlib import Path

TEXT = STACK.read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
HEAD = TEXT[: TEXT.index("\nx-")]
each_service = pytest.mark.parametrize("name", SERVICES)


def default(value: object) -> str:
    """Returns the value without any variable set."""
    return re.sub(r"\$\{\w+(?::-([^}]*))?[^}]*\}", lambda match: match[1] or "", str(value))


def seconds(value: object) -> float:
    return float(default(value).removesuffix("s"))


@each_service
def test_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode", "user", "restart"}
    assert not [mount for mount in service["volumes"] if mount["type"] == "bind"]
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@each_service
def test_image_is_required(name: str) -> None:
    assert re.fullmatch(r"\$\{TRUTHGRAPH_\w+_IMAGE:\?[^}]+\}", SERVICES[name]["image"])


@each_service
def test_environment_has_no_secret(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if variable.endswith("_FILE"):
            assert default(value).startswith("/run/secrets/")
        else:
            assert not re.search(r"PASSWORD|SECRET|TOKEN$|_KEY|_URL$", variable), variable


@pytest.mark.parametrize("name", ["api", "migrate"])
def test_api_knows_all_its_variables(name: str, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://u:p@database/d")
    given = {variable: default(value) for variable, value in SERVICES[name]["environment"].items()}
    given["TRUTHGRAPH_DATABASE_URL_FILE"] = str(tmp_path / "url")
    assert Settings.from_environment(given).unknown == ()
    assert Settings.from_environment({**given, f"{PREFIX}MISSPELT": "1"}).unknown, "an unknown variable is found"


def test_only_the_proxy_is_reachable_from_outside() -> None:
    networks = yaml.safe_load(TEXT)["networks"]
    assert {name for name, network in networks.items() if not (network or {}).get("internal")} == {"edge"}
    joined = {name: set(service["networks"]) for name, service in SERVICES.items()}
    assert joined == {
        "proxy": {"edge", "front"},
        "api": {"front", "back"},
        "migrate": {"back"},
        "database": {"back"},
    }
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]


def test_replica_has_time_to_stop_before_it_is_killed() -> None:
    api = SERVICES["api"]
    environment = api["environment"]
    delay, drain = (seconds(environment[f"TRUTHGRAPH_{name}_SECONDS"]) for name in ("SHUTDOWN_DELAY", "DRAIN"))
    closing = 1 + Settings().database_timeout_seconds
    assert seconds(api["stop_grace_period"]) > delay + drain + drain / 2 + closing
    assert drain >= Settings().request_seconds, "an accepted request is completed"
    conf = (PROJECT / "docker/proxy/nginx.conf").read_text()
    [shutdown] = re.findall(r"worker_shutdown_timeout (\d+)s", conf)
    assert seconds(SERVICES["proxy"]["stop_grace_period"]) > float(shutdown) > Settings().request_seconds
    [validity] = re.findall(r"valid=(\d+)s", conf)
    assert delay > 2 * float(validity), "the proxy resolves the name again before a replica stops listening"


def test_update_starts_first_waits_for_health_and_rolls_back() -> None:
    deploy = SERVICES["api"]["deploy"]
    update = deploy["update_config"]
    assert (update["order"], update["failure_action"], update["parallelism"]) == ("start-first", "rollback", 1)
    assert deploy["rollback_config"]["order"] == "start-first"
    assert "readyz" in SERVICES["api"]["healthcheck"]["test"][1]
    for name in ("database", "proxy"):
        assert SERVICES[name]["deploy"]["update_config"]["order"] == "stop-first", "one volume, one port"


def test_names_resolve_to_replicas() -> None:
    for name in ("proxy", "api", "database"):
        assert SERVICES[name]["deploy"]["endpoint_mode"] == "dnsrr"
    assert all(port["mode"] == "host" for port in SERVICES["proxy"]["ports"])


def test_variable_is_explained_or_a_setting_of_the_api() -> None:
    passed_on = {
        name for name, value in SERVICES["api"]["environment"].items() if str(value).startswith(f"${{{name}:-")
    }
    used = set(re.findall(r"\$\{(TRUTHGRAPH_\w+)", TEXT))
    explained = re.sub(r"(?<=[ ,])_(?=[A-Z])", "TRUTHGRAPH_", HEAD)
    assert used - passed_on <= set(re.findall(r"TRUTHGRAPH_\w+", explained))


def test_secrets_are_made_once_and_match(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    for _ in range(2):
        subprocess.run([PROJECT / "docker" / "make-secrets", folder], check=True)
        password = (folder / "database-password").read_text()
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", password)
        assert (folder / "database-url").read_text() == f"postgresql://truthgraph:{password}@database/truthgraph"
        before = folder / "before"
        assert not before.exists() or before.read_text() == password, "an existing secret is kept"
        before.write_text(password)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {(folder / name).stat().st_mode & 0o777 for name in ("database-password", "database-url")} == {0o444}
