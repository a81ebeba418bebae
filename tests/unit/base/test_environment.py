"""Names of environment variables are checked once, for every command and every role."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from piecework.base import environment
from piecework.base.errors import SettingsError
from piecework.base.settings import Settings, Variables, load, tables_of
from piecework.client import config as client
from piecework.signer import config as signer
from piecework_node import config as worker

ROOT = Path(__file__).resolve().parents[3]
ROLES: dict[str, tuple[type[Settings], Variables]] = {
    "WORKER": (worker.WorkerConfig, worker.VARIABLES),
    "CLIENT": (client.ClientConfig, client.VARIABLES),
    "SIGNER": (signer.SignerConfig, signer.VARIABLES),
}


@pytest.mark.parametrize("role", ROLES)
def test_the_names_of_a_role_are_those_of_its_settings(role: str) -> None:
    model, variables = ROLES[role]
    names = [name for name in model.model_fields if tables_of(model, name) is None]
    assert sorted(environment.SETTINGS[role]) == sorted(names)
    assert {variables.name_of(name) for name in names} <= environment.KNOWN


def test_every_variable_that_the_programs_name_is_known() -> None:
    named: dict[str, str] = {}
    for folder in ("piecework", "node", "protocol", "model", "deploy", "examples"):
        for file in (ROOT / folder).rglob("*.py"):
            for item in ast.walk(ast.parse(file.read_text())):
                if isinstance(item, ast.Constant) and isinstance(item.value, str):
                    word = item.value.strip("$")
                    if word.startswith("PIECEWORK_") and word.isupper() and word[-1] != "_":
                        named[word] = file.name
    assert len(named) > 8
    assert {word: file for word, file in named.items() if word not in environment.KNOWN} == {}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PIECEWORK_MARKET_DATABSE", "PIECEWORK_MARKET_DATABASE"),
        ("PIECEWORK_MARKET_RCP", "PIECEWORK_MARKET_RPC"),
        ("PIECEWORK_HOMES", "PIECEWORK_HOME"),
        ("PIECEWORK_MODLES", "PIECEWORK_MODELS"),
        ("PIECEWORK_PASSWROD", "PIECEWORK_PASSWORD"),
        ("PIECEWORK_CLIENT_MAX_JOB_PRISE", "PIECEWORK_CLIENT_MAX_JOB_PRICE"),
        ("PIECEWORK_WORKER_ADMN_PORT", "PIECEWORK_WORKER_ADMIN_PORT"),
        ("PIECEWORK_SIGNER_DAILY_TOKEN", "PIECEWORK_SIGNER_DAILY_TOKENS"),
        ("piecework_home", "PIECEWORK_HOME"),
        ("PIECWORK_PASSWORD", "PIECEWORK_PASSWORD"),
        ("PIECEWORKS_MARKET_DATABASE", "PIECEWORK_MARKET_DATABASE"),
    ],
)
def test_a_mistyped_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(SettingsError) as refused:
        environment.check_names({"PATH": "/bin", name: "5"})
    assert refused.value.problems == (f"there is no variable {name}. Did you mean {nearest}?",)


def test_a_name_that_is_near_to_nothing_is_refused_too() -> None:
    with pytest.raises(SettingsError, match=r"there is no variable PIECEWORK_ZZZ\Z"):
        environment.check_names({"PIECEWORK_ZZZ": "5"})


def test_one_environment_may_hold_the_names_of_all_roles() -> None:
    everything = dict.fromkeys(environment.KNOWN, "1")
    environment.check_names(everything | {"PIECE": "1", "PIECEWISE_LINEAR": "1", "_": "1", "": ""})
    for model, variables in ROLES.values():
        assert _refused_names(model, variables, everything) == []


def _refused_names(model: type[Settings], variables: Variables, names: dict[str, str]) -> list[str]:
    """What the loader of a role says of names. Each has a value that some settings refuse."""
    try:
        load(model, variables, environment=names)
    except SettingsError as error:
        return [line for line in error.problems if line.startswith("there is no variable")]
    return []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PIECEWORK_SERVICE_HOST", "10.0.0.1"),
        ("PIECEWORK_INDEX_SERVICE_PORT", "8380"),
        ("PIECEWORK_INDEX_SERVICE_PORT_HTTP", "8380"),
        ("PIECEWORK_PORT", "tcp://10.0.0.1:80"),
        ("PIECEWORK_GATEWAY_PORT", "tcp://10.0.0.1:80"),
        ("PIECEWORK_GATEWAY_PORT_80_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_the_links_of_a_container_platform_are_left_alone(name: str, value: str) -> None:
    environment.check_names({name: value})


def test_a_port_that_a_person_wrote_is_not_a_link() -> None:
    with pytest.raises(SettingsError, match="PIECEWORK_GATEWAY_PORT"):
        environment.check_names({"PIECEWORK_GATEWAY_PORT": "8000"})


@pytest.mark.process
@pytest.mark.parametrize("command", ["market", "relay", "models", "chain", "worker"])
def test_every_command_refuses_a_mistyped_name(command: str) -> None:
    result = _piecework(command, "--help", PIECEWORK_MARKET_DATABSE="postgresql://db/market")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: there is no variable PIECEWORK_MARKET_DATABSE. "
        "Did you mean PIECEWORK_MARKET_DATABASE?\n"
    )


@pytest.mark.process
def test_a_shell_that_completes_a_line_is_not_disturbed() -> None:
    completing = {"_PIECEWORK_COMPLETE": "complete_bash", "_TYPER_COMPLETE_ARGS": "piecework mar"}
    result = _piecework(**completing, COMP_WORDS="piecework mar", COMP_CWORD="1", PIECEWORK_X="1")
    assert "market" in result.stdout and "PIECEWORK_X" not in result.stderr


def _piecework(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "piecework", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
