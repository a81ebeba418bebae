"""Every process that we start, from a folder whose files are named like what it imports.

Each of those files leaves a mark when it runs. None may run.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from piecework.demo.market import free_port
from piecework.processes import Role
from piecework_node.engine.link import EngineReady
from tests.support.model.engine_process import cpu_engine
from tests.support.system.commands import piecework

TIMEOUT_S = 180.0
# Our packages, the names that they had, libraries, and the standard library.
MODULES = (
    *("piecework", "piecework_model", "piecework_node", "piecework_protocol"),
    *("bench", "chain", "client", "contracts", "market", "model", "protocol"),
    *("aiohttp", "grpc", "numpy", "torch", "transformers", "typer", "web3"),
    *("asyncio", "dataclasses", "json", "ssl", "typing"),
)
FOLDERS = ("node", "tokenizers")
LEAVE_A_MARK = """
import os
os.close(os.open({mark!r}, os.O_CREAT | os.O_WRONLY, 0o600))
"""


@dataclass(frozen=True, slots=True)
class HostileFolder:
    """The current folder of a test, and the marks that its files left."""

    path: Path
    marks: Path

    def ran(self) -> list[str]:
        """The names of the files that were imported."""
        return sorted(mark.name for mark in self.marks.iterdir())


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostileFolder:
    folder = HostileFolder(tmp_path / "folder", tmp_path / "marks")
    folder.path.mkdir()
    folder.marks.mkdir()
    for name in MODULES:
        write_hostile(folder, folder.path / f"{name}.py", name)
    for name in FOLDERS:
        (folder.path / name).mkdir()
        write_hostile(folder, folder.path / name / "__init__.py", name)
    monkeypatch.chdir(folder.path)
    return folder


def write_hostile(folder: HostileFolder, file: Path, name: str) -> None:
    file.write_text(LEAVE_A_MARK.format(mark=str(folder.marks / name)))


async def exit_code(*arguments: str) -> int:
    """Run a program in the current folder to its end."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(TIMEOUT_S):
        return await process.wait()


def environment_of(pid: int) -> list[bytes]:
    """What the kernel says a process was born with."""
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


async def test_the_files_of_the_folder_do_run_where_nothing_prevents_it(
    hostile: HostileFolder,
) -> None:
    """Without this the other tests could pass because the files are harmless."""
    await exit_code(sys.executable, "-m", "piecework", "--version")
    assert "piecework" in hostile.ran()


async def test_the_engine_process_imports_nothing_from_the_current_folder(
    hostile: HostileFolder,
) -> None:
    supervisor = cpu_engine()
    life = asyncio.ensure_future(supervisor.run())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            assert isinstance(await anext(aiter(supervisor.events())), EngineReady)
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
    assert hostile.ran() == []


async def test_the_health_check_imports_nothing_from_the_current_folder(
    hostile: HostileFolder,
) -> None:
    address = f"http://127.0.0.1:{free_port()}/health"
    assert await exit_code(sys.executable, "-P", "-m", "piecework.health", "http", address) == 1
    assert hostile.ran() == []


async def test_a_role_says_to_its_own_children_to_import_nothing_from_the_current_folder(
    hostile: HostileFolder, tmp_path: Path
) -> None:
    role = await Role.start("chain", ["chain", "dev", "--port", "0"], tmp_path / "chain.log")
    try:
        born_with = environment_of(role.process.pid)
    finally:
        await role.stop()
    assert b"PYTHONSAFEPATH=1" in born_with
    assert hostile.ran() == []


async def test_every_role_of_the_demo_imports_nothing_from_the_current_folder(
    hostile: HostileFolder,
) -> None:
    """The demo starts chain, index, worker with its engine, and gateway: all of the roles."""
    said = await piecework("demo", "--json", "--max-tokens", "32")
    assert said.json()["ok"]
    assert hostile.ran() == []


async def test_the_console_command_imports_nothing_from_the_current_folder(
    hostile: HostileFolder,
) -> None:
    program = Path(sys.executable).parent / "piecework"
    assert await exit_code(str(program), "worker", "--help") == 0
    assert hostile.ran() == []
