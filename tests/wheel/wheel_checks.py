"""The built wheel in empty virtual environments, beside a user's own modules: `make wheel-test`.

The file is not named like a test, so that `make test` leaves it out: it installs from the package
index, a gigabyte with torch. PIECEWORK_WHEEL_PYTHON names another interpreter to try.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from tests.support.system.distributions import PROJECT, ROOT

PYTHON = os.environ.get("PIECEWORK_WHEEL_PYTHON", sys.executable)
PACKAGES = {"piecework", "piecework_model", "piecework_node", "piecework_protocol"}
INSTALL_TIMEOUT_S = 1800
COMMAND_TIMEOUT_S = 300
NOT_IN_A_CLIENT = {
    "torch",
    "transformers",
    "typer",
    "rich",
    "structlog",
    "prometheus-client",
    "py-evm",
}
APP = """
import client, model
assert client.MINE and model.MINE
import piecework.client
from piecework.client import *
missing = [name for name in piecework.client.__all__ if name not in globals()]
assert not missing, missing
print(len(piecework.client.__all__), "names")
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """A virtual environment, and the folder of the person who uses it."""

    venv: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the user's folder."""
        return subprocess.run(
            [str(self.venv / "bin" / program), *arguments],
            cwd=self.folder,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
        )

    def pip(self, *arguments: str) -> str:
        """Run pip, which has to succeed; its standard output."""
        result = subprocess.run(
            [str(self.venv / "bin" / "python"), "-P", "-m", "pip", *arguments],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT_S,
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout

    def versions(self) -> dict[str, str]:
        """What is installed, without the local part that a build for one accelerator has."""
        listed = json.loads(self.pip("list", "--format", "json"))
        return {canonicalize_name(p["name"]): p["version"].partition("+")[0] for p in listed}


def clean_environment() -> dict[str, str]:
    """This process's, without what would let a program see the checkout or our environment."""
    hidden = ("PYTHON", "COVERAGE", "PIECEWORK_", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if not k.startswith(hidden)}


def pins(name: str) -> dict[str, str]:
    """The versions of a lock file or of the constraints."""
    lines = (ROOT / name).read_text().splitlines()
    found = [line.split(" ")[0].split("==") for line in lines if line[:1].isalnum()]
    return {canonicalize_name(name): version for name, version in found}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source archive, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-P", "-m", "build", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=INSTALL_TIMEOUT_S,
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture
def environment(tmp_path: Path) -> Installed:
    """An empty virtual environment, and a folder of modules with the names that ours once had."""
    subprocess.run([PYTHON, "-I", "-m", "venv", str(tmp_path / "venv")], check=True)
    folder = tmp_path / "user"
    (folder / "model").mkdir(parents=True)
    for file in ("client.py", "chain.py", "protocol.py", "model/__init__.py"):
        (folder / file).write_text("MINE = True\n")
    (folder / "app.py").write_text(APP)
    return Installed(tmp_path / "venv", folder)


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_the_wheel_holds_four_typed_packages_and_the_contracts_that_they_deploy(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    assert {n.partition("/")[0] for n in names} == PACKAGES
    assert names >= {f"{package}/py.typed" for package in PACKAGES}
    assert {Path(n).suffix for n in names} <= set(WHEEL_SUFFIXES)
    artifacts = {p.name for p in (ROOT / "contracts" / "artifacts").iterdir() if p.is_file()}
    prefix = "piecework/chain/contract_artifacts/"
    assert {n.removeprefix(prefix) for n in names if n.startswith(prefix)} == artifacts
    frozen = {p.name for p in (ROOT / "contracts" / "release").glob("*.initcode.hex")}
    prefix = "piecework/chain/contract_release/"
    assert {n.removeprefix(prefix) for n in names if n.startswith(prefix)} == frozen


WHEEL_SUFFIXES = (
    *(".py", ".pyi", ".typed", ".proto", ".sql", ".json", ".hex"),
    *(".safetensors", ".jinja", ".sha256", ".md"),
)


def test_the_source_archive_holds_what_the_wheel_is_built_from_and_no_tests(built: Path) -> None:
    (found,) = built.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        paths = {Path(*Path(n).parts[1:]).as_posix() for n in archive.getnames()}
    tops = {p.partition("/")[0] for p in paths}
    assert not tops & {"tests", "bench", "docs", ".ci"}
    assert {p.split("/")[1] for p in paths if p.startswith("contracts/")} == {
        "artifacts",
        "release",
    }


def test_the_metadata_names_what_was_tried(wheel: Path) -> None:
    said = metadata(wheel)
    assert said["Requires-Python"] and said["License-Expression"] == PROJECT["license"]
    classifiers = said.get_all("Classifier", [])
    tried = {c.rpartition(" ")[2] for c in classifiers if "Python :: 3." in c}
    version = subprocess.run(
        [PYTHON, "-P", "-c", "import sys; print('{}.{}'.format(*sys.version_info))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert version in tried, f"add the classifier of Python {version}"


def test_a_client_is_installed_without_torch_and_terminal_and_names_the_extra_it_lacks(
    environment: Installed, wheel: Path
) -> None:
    environment.pip("install", "--quiet", "--constraint", "constraints.txt", str(wheel))
    assert not environment.versions().keys() & NOT_IN_A_CLIENT
    environment.pip("check")
    result = environment.run("python", "app.py")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[0]) > 20
    refused = environment.run("piecework", "client", "--help")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ") and f"{wheel.name}[cli]" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_the_client_lock_installs_with_its_hashes_and_is_enough(
    environment: Installed, wheel: Path
) -> None:
    environment.pip("install", "--quiet", "--require-hashes", "-r", "requirements/client.lock")
    environment.pip("install", "--quiet", "--no-deps", f"{wheel}[gateway,market]")
    environment.pip("check")
    for command in ("client", "gateway", "market"):
        result = environment.run("piecework", command, "--help")
        assert result.returncode == 0, result.stderr


def test_the_whole_demo_runs_from_the_wheel_beside_a_users_own_modules(
    environment: Installed, wheel: Path
) -> None:
    environment.pip("install", "--quiet", "--constraint", "constraints.txt", f"{wheel}[demo]")
    environment.pip("check")
    locked = pins("requirements/worker.lock") | pins("requirements/chain.lock")
    installed = environment.versions()
    assert {k: v for k, v in installed.items() if k in locked}.items() <= locked.items()
    assert installed["torch"] == pins("constraints.txt")["torch"]
    own = environment.run("python", "app.py")
    assert own.returncode == 0, own.stderr
    report = completed(environment.run("piecework", "demo", "--json", "--max-tokens", "64"))
    assert report["ok"] and report["receipts"]
    # Every file that the locks name has one of their hashes.
    environment.pip(
        *("install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"),
        *("--require-hashes", "-r", "requirements/worker.lock", "-r", "requirements/chain.lock"),
    )


def completed(result: subprocess.CompletedProcess[str]) -> Mapping[str, Any]:
    """The JSON object that a command printed."""
    assert result.returncode == 0, result.stderr
    report: Mapping[str, Any] = json.loads(result.stdout)
    return report
