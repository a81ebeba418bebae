"""Every process that we start, from a folder whose files are named like what it imports.

Each of those files leaves a mark when it runs. None may run.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.client.audits.engine import EngineAuditor
from piecework.demo.market import free_port
from piecework.processes import Role
from piecework_node.engine.link import EngineReady
from piecework_node.operations.updating import Installation, make_environment, take_wheel
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.types import Address
from tests.support.chain.chains import deployed
from tests.support.chain.signers import SignerProcess, payouts
from tests.support.model.engine_process import cpu_engine
from tests.support.system.commands import piecework
from tests.support.system.wheels import build_wheel, digest_of, install

pytestmark = pytest.mark.process

TIMEOUT_S = 180.0
# Our packages, the names that they had, libraries, and the standard library.
MODULES = (
    *("piecework", "piecework_model", "piecework_node", "piecework_protocol"),
    *("bench", "chain", "client", "contracts", "market", "model", "protocol"),
    *("aiohttp", "grpc", "numpy", "torch", "transformers", "typer", "web3"),
    *("asyncio", "dataclasses", "json", "ssl", "typing"),
    # What makes an environment and fills it.
    *("ensurepip", "pip", "subprocess", "venv"),
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


async def test_an_update_imports_nothing_from_the_current_folder(
    hostile: HostileFolder, tmp_path: Path
) -> None:
    """It makes an environment and installs into it: venv, pip, and what pip starts."""
    install(tmp_path, "first", build_wheel(tmp_path, "1.0"))
    (tmp_path / "current").symlink_to("first")
    wheel = build_wheel(tmp_path, "2.0")
    (tmp_path / "taken").mkdir()
    taken = take_wheel(wheel, digest_of(wheel), tmp_path / "taken")
    made = await asyncio.to_thread(
        make_environment, Installation(tmp_path / "current"), taken, locks=()
    )
    assert (made / "bin" / "piecework").is_file()
    assert hostile.ran() == []


async def test_the_audit_process_imports_nothing_from_the_current_folder(
    hostile: HostileFolder,
) -> None:
    report = await EngineAuditor().audit(b"no evidence\n", 0, AuditLevel.REPLAY)
    # The child has read what it was given, and has said what is wrong with it.
    assert report.outcome is AuditOutcome.NO_VERDICT and "it is not JSON" in report.reason
    assert hostile.ran() == []


async def test_relay_and_signer_import_nothing_from_the_current_folder(
    hostile: HostileFolder, tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with deployed(embedded_chain) as market:
        market.deployment.save(tmp_path / "deployment.json")
        relay = ["relay", "start", "--deployment", str(tmp_path / "deployment.json"), "--port", "0"]
        role = await Role.start("relay", relay, tmp_path / "relay.log")
        await role.stop()
        signer = SignerProcess.make(
            *(tmp_path / "signer", market.deployment, b"\x07" * 32),
            payouts=payouts(Address(b"\x01" * 20)),
        )
        assert (await signer.start())["role"] == "signer"
        await signer.kill()
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
