"""anvil as a child process: a fast chain for tests and for `piecework chain dev --anvil`.

Found on PATH, or in the contracts project's node_modules (npm's @foundry-rs packages carry the
binary).
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from piecework.chain.dev.faucet import ANVIL_FAUCET_KEY
from piecework.chain.errors import AnvilMissing
from piecework.chain.limits import ANVIL_CHAIN_ID, ANVIL_START_TIMEOUT_S, ANVIL_STOP_TIMEOUT_S
from piecework_protocol.signing import LocalSigner

_MODULES = Path(__file__).resolve().parents[3] / "contracts" / "node_modules"
_LISTENING = re.compile(rb"Listening on ([0-9.]+):([0-9]+)")
_SHOWN_BYTES = 300
_ARCHITECTURES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def find_anvil() -> Path:
    """The anvil binary; `AnvilMissing` says how to get one."""
    on_path = shutil.which("anvil")
    if on_path is not None:
        return Path(on_path)
    system = platform.system().lower()
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    candidate = _MODULES / "@foundry-rs" / f"anvil-{system}-{architecture}" / "bin" / "anvil"
    if candidate.is_file():
        return candidate
    raise AnvilMissing(
        "anvil was not found. Install Foundry, or run `npm ci --ignore-scripts` in the contracts "
        "folder."
    )


class Anvil:
    """One anvil process on a port of its own. `stop` it, or use it as an async context manager."""

    def __init__(self, extra: Sequence[str] = (), *, chain_id: int = ANVIL_CHAIN_ID) -> None:
        """`extra` are command-line arguments such as ("--block-time", "1") or ("--no-mining",)."""
        self.chain_id = chain_id
        self._extra = tuple(extra)
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None
        self.url = ""

    @property
    def faucet(self) -> LocalSigner:
        """The first funded account: a published test key."""
        return LocalSigner(ANVIL_FAUCET_KEY)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Start and wait until it listens; port 0 lets it choose. `AnvilMissing` if it does not
        come up."""
        arguments = (
            "--host",
            host,
            "--port",
            str(port),
            "--chain-id",
            str(self.chain_id),
            *self._extra,
        )
        self._process = await asyncio.create_subprocess_exec(
            find_anvil(),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # A Ctrl-C on the terminal is for us; we stop anvil ourselves, after what depends on it.
            start_new_session=True,
        )
        output = self._process.stdout
        if output is None:
            raise AnvilMissing("anvil started without an output")
        try:
            async with asyncio.timeout(ANVIL_START_TIMEOUT_S):
                self.url = await _listening(output)
        except (TimeoutError, AnvilMissing) as error:
            await self.stop()
            raise AnvilMissing(f"anvil did not start: {error or 'it took too long'}") from error
        self._drain = asyncio.create_task(_discard(output), name="anvil-output")
        return self.url

    async def ended(self) -> None:
        """Return when the process has ended."""
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        """Terminate the process, by force after a while. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANVIL_STOP_TIMEOUT_S):
                        await process.wait()
            finally:  # also when whoever stops us loses patience
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        drain, self._drain = self._drain, None
        if drain is not None:
            await drain


async def _listening(output: asyncio.StreamReader) -> str:
    """Read up to the line that names the address; `AnvilMissing` with the last words if it ends
    before."""
    printed = b""
    while line := await output.readline():
        match = _LISTENING.search(line)
        if match is not None:
            return f"http://{match[1].decode()}:{match[2].decode()}"
        printed = (printed + b" " + line.strip())[-_SHOWN_BYTES:]
    raise AnvilMissing(printed.decode(errors="replace").strip() or "it printed nothing")


async def _discard(output: asyncio.StreamReader) -> None:
    """Keep the pipe empty, or anvil would block once it is full."""
    while await output.read(64 * 1024):
        pass
