"""deploy/compose.production.yml without Docker: what docs/owners/containers.md types, in its order.

`docker compose run` and `exec` are the command in the environment of the service, `up` is the
service's own command. The page says that this is how its commands were tried.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from piecework.processes import ProcessGroup
from piecework_node.daemon.admin import ADDRESS_FILE
from tests.support.documents import blocks
from tests.support.system.containers import HEALTHY_WITHIN_S, LOOPBACK, POLL_S, ComposePlace
from tests.support.system.on_terminal import on_terminal
from tests.support.waiting import until

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(
    (DEPLOY / "compose.production.yml").read_text()
)["services"]
CONSOLE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.console.yml").read_text())["services"]
IMAGE = dict(re.findall(r"^ENV (\w+)=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
PAGE = ROOT / "docs" / "owners" / "containers.md"
PAID_BY_A_FAUCET = {("worker", "init"), ("client", "deposit")}
"""Commands for which a reader has sent tokens. Here the development chain gives them."""
COMPOSE = re.compile(r"(\w+=\S+ )*docker compose ")


@dataclass(frozen=True)
class Typed:
    """A line of the page. Without a service it is a line for the shell."""

    text: str
    verb: str = ""
    service: str = ""
    files: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    command: tuple[str, ...] = field(default=())

    @classmethod
    def read(cls, text: str) -> Typed:
        if not COMPOSE.match(text):
            return cls(text)
        words, files, mounts, rest = iter(shlex.split(text)), list[str](), list[str](), list[str]()
        profile = verb = ""
        for word in words:
            if word in ("-f", "--profile", "--volume"):
                value = next(words)
                profile = value if word == "--profile" else profile
                files += [value] * (word == "-f")
                mounts += [value] * (word == "--volume")
            elif not verb and word in ("build", "run", "exec", "up", "stop"):
                verb = word
            elif verb in ("run", "exec") and word not in ("--rm", profile):
                rest = [word, *words]
        return cls(text, verb, profile, tuple(files), tuple(mounts), tuple(rest))


def typed() -> Iterator[Typed]:
    """Every line of the page, with continued lines put together."""
    for block in blocks(PAGE):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                yield Typed.read(line)


def test_the_page_names_files_and_services_that_there_are_and_starts_each_of_them() -> None:
    lines = [line for line in typed() if line.service]
    assert {name for line in lines for name in line.files} == {
        "deploy/compose.production.yml",
        "deploy/compose.console.yml",
    }
    assert {line.service for line in lines if line.verb == "up"} == set(SERVICES)
    # No command of the page has a --home.
    for name, role in (("worker", "worker"), ("gateway", "client")):
        assert f"--home={IMAGE['PIECEWORK_HOME']}/{role}" in SERVICES[name]["command"]
    assert CONSOLE.keys() == {"worker"}
    assert CONSOLE["worker"]["ports"] == ["127.0.0.1:9464:9464"]


class Reader:
    """Types the page. What is up stays up until it is stopped, or until the end."""

    def __init__(self, place: ComposePlace) -> None:
        self.place, self.said = place, dict[str, str]()
        self._up: dict[str, AsyncExitStack] = {}

    async def type(self, line: Typed) -> None:
        if not line.service:
            await self._shell(line.text)
        elif line.verb == "up":
            await self._start(line)
        elif line.verb == "stop":
            await self._up.pop(line.service).aclose()
        elif line.verb == "exec":
            assert line.service in self._up, line.text
            await self._exec(line)
        elif line.verb == "run":
            assert all(mount.split(":")[1] in self.place.more for mount in line.mounts), line.text
            await self._run(line, ["--faucet"] * (line.command[1:3] in PAID_BY_A_FAUCET))

    async def _shell(self, text: str) -> None:
        process = await asyncio.create_subprocess_exec(
            "bash", "-euc", text, cwd=self.place.root, stdin=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0, text

    async def _start(self, line: Typed) -> None:
        """Start a service as its files together say, in place of one that is up."""
        name = line.service
        if name in self._up:
            await self._up.pop(name).aclose()
        more = CONSOLE.get(name, {}) if len(line.files) > 1 else {}
        service = {**SERVICES[name]}
        service["environment"] = {**service.get("environment", {}), **more.get("environment", {})}
        # A measurement of the speed takes its time, and is not what is tried here.
        service["environment"] |= {"PIECEWORK_WORKER_BENCHMARK_S": "1"} if name == "worker" else {}
        self.place.services[name] = service
        stack = self._up[name] = AsyncExitStack()
        process = await stack.enter_async_context(self.place.started(name))
        await self.place.wait_until_healthy(name, process)
        if name == "worker":  # it is healthy while it loads its model, and answers commands then
            file = self.place.root / "home" / "piecework" / "worker" / ADDRESS_FILE
            await until(file.exists, within_s=HEALTHY_WITHIN_S, poll_s=POLL_S)

    async def _exec(self, line: Typed) -> None:
        if line.command[-2:] != ("worker", "top"):
            await self._run(line, [])
            return
        size = {"COLUMNS": "120", "LINES": "60", "TERM": "xterm"}
        environment = {**self.place.environment(line.service), **size}
        answers = [("tiny-stories", "q")]  # the name of the model that the worker runs
        code, shown = await on_terminal(*line.command[1:], answers=answers, environment=environment)
        assert code == 0, shown[-2000:]

    async def _run(self, line: Typed, more: list[str]) -> None:
        code, said = await self.place.run(line.service, [*line.command, *more])
        assert code == 0, f"{line.text}\n{said.decode()}"
        self.said[" ".join(line.command)] = said.decode().strip()

    async def aclose(self) -> None:
        for stack in reversed(self._up.values()):
            await stack.aclose()


async def test_every_role_of_the_page_comes_up_and_the_console_is_reached_from_the_host(
    tmp_path: Path,
) -> None:
    file = tmp_path / "deployment.json"
    async with ProcessGroup(tmp_path / "logs") as group, AsyncExitStack() as stack:
        chain = await group.start(
            "chain", ["chain", "dev", "--port", "0", "--deployment", str(file)]
        )
        rpc = chain.ready["rpc_url"]
        # As the file of a real market, it names no node.
        known = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in known.items() if k != "rpc_url"}))
        place = ComposePlace(tmp_path, {**SERVICES}, IMAGE)
        place.more = {
            "https://rpc.example": rpc,
            "${PIECEWORK_MARKET_RPC:-}": rpc,
            "https://index.example": f"http://{LOOPBACK}:{place.port('8380')}",
            "gpu.example.org:50051": f"{LOOPBACK}:{place.port('50051')}",
            "/deployment.json": str(file),
        }
        _mount(place)
        reader = Reader(place)
        stack.push_async_callback(reader.aclose)
        for line in typed():
            await reader.type(line)
            if line.command[-1:] == ("--web",):
                await _opens(reader.said[" ".join(line.command)], place)


def _mount(place: ComposePlace) -> None:
    """Make the folders. An empty volume is as the folder of the image: for its user alone."""
    for service in SERVICES.values():
        for volume in service["volumes"]:
            Path(place.here(volume.partition(":")[2])).mkdir(mode=0o700)
    (place.root / "deploy").mkdir()
    (place.root / "deploy" / "secrets").symlink_to(place.root / "run" / "secrets")


async def _opens(address: str, place: ComposePlace) -> None:
    """Ask for the page as a browser of the host would, through the port that is published."""
    assert address.startswith(f"http://{LOOPBACK}:{place.port('9464')}/console?key=")
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        page = await http.get(address)
        assert page.status == 200 and "Canvases now" in await page.text()
