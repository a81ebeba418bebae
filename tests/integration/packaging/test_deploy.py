"""What deploy/ ships: the production compose file and the systemd units, held to our programs."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from piecework_node.config import WorkerConfig

ROOT = Path(__file__).resolve().parents[3]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.production.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SETTLEMENT_S = 60.0
"""What a drain takes at most behind the grace for jobs (docs/operating.md)."""
DRAIN_S = float(WorkerConfig.model_fields["drain_grace_s"].default) + SETTLEMENT_S


def parsed(command: list[str]) -> Any:
    """Parse a command line of ours without running it. A wrong option raises `UsageError`."""
    program, group, *rest = command
    assert program.endswith("piecework")
    module = importlib.import_module(f"piecework.commands.{group}")
    context: Any = typer.main.get_command(module.app).make_context(group, rest)
    while left := [*context._protected_args, *context.args]:
        name, found, rest = context.command.resolve_command(context, left)
        context = found.make_context(name, rest, parent=context)
    return context


def lines(unit: Path) -> Iterator[tuple[str, str]]:
    """The settings of a unit, with continued lines put together."""
    text = unit.read_text().replace("\\\n", " ")
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            yield name, value.strip()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_that_exists_and_reads_its_password_from_a_credential(
    unit: Path,
) -> None:
    (start,) = [value for name, value in lines(unit) if name == "ExecStart"]
    context = parsed(shlex.split(start))
    assert str(context.params["password_file"]) == "${CREDENTIALS_DIRECTORY}/password"
    assert any(name == "LoadCredential" and v.startswith("password:") for name, v in lines(unit))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_writes_where_it_may(unit: Path) -> None:
    found = dict(lines(unit))
    assert (found["ProtectSystem"], found["NoNewPrivileges"]) == ("strict", "true")
    writable = [f"/var/lib/{found['StateDirectory']}"]
    writable += [f"/var/cache/{found['CacheDirectory']}"] if "CacheDirectory" in found else []
    folders = [v.split("=", 1)[1] for name, v in lines(unit) if name == "Environment"]
    assert folders
    assert all(any(f.startswith(folder) for folder in writable) for f in folders)


def test_a_drain_is_never_cut_short() -> None:
    for unit in UNITS:
        if "worker" in unit.name:
            assert int(dict(lines(unit))["TimeoutStopSec"]) > DRAIN_S
    assert float(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > DRAIN_S


def test_the_page_shows_the_unit_that_is_shipped() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    assert (ROOT / "deploy" / "systemd" / "piecework-worker.service").read_text() in page


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_starts_a_command_that_exists(name: str) -> None:
    assert parsed(SERVICES[name]["command"]).params


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_locked_down_and_keeps_its_home(name: str) -> None:
    service = SERVICES[name]
    assert service["init"] is service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not any(key in service for key in ("privileged", "network_mode", "user"))
    mounted = {volume.split(":", 1)[1] for volume in service["volumes"]}
    homes = {p.split("=", 1)[1] for p in service["command"] if p.startswith("--home=")}
    assert homes <= mounted
    assert {v.split(":", 1)[0] for v in service["volumes"]} <= set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_loopback_but_the_one_that_clients_dial(name: str) -> None:
    for port in SERVICES[name]["ports"]:
        expected = "${PIECEWORK_PUBLIC:-127.0.0.1}:" if name == "worker" else "127.0.0.1:"
        assert port.startswith(expected)


def test_passwords_are_files_and_never_in_the_environment() -> None:
    for service in SERVICES.values():
        assert not any("PASSWORD" in name for name in service.get("environment", {}))
        used = [p for p in service["command"] if p.startswith("--password-file=/run/secrets/")]
        secrets = [p.rsplit("/", 1)[1] for p in used]
        assert secrets == service.get("secrets", [])
        assert set(secrets) <= set(COMPOSE["secrets"])


def test_the_worker_reserves_a_gpu_and_keeps_what_triton_compiles() -> None:
    worker = SERVICES["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    cache = worker["environment"]["TRITON_CACHE_DIR"]
    assert any(cache.startswith(v.split(":", 1)[1]) for v in worker["volumes"])


def test_the_image_is_built_in_layers_that_stay() -> None:
    text = (ROOT / "Dockerfile").read_text()
    last = text.rsplit("\nFROM ", 1)[1]
    assert last.index("requirements/torch.lock") < last.index("COPY --from=wheel")
    assert "gcc" in last  # for Triton
    assert "@sha256:" not in text  # a digest is named only where one was resolved
