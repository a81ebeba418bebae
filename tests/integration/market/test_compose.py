"""docker-compose.yml without Docker: its commands as processes, its health checks, its Prometheus
targets.

What a container gives is put there by substitution in the text: service names become 127.0.0.1,
fixed ports free ones, and the folders of the image temporary ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from piecework.demo.market import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("piecework")]
HEALTHY_WITHIN_S = 120.0
CHECK_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.2
LOOPBACK = "127.0.0.1"
FOLDERS = ("/market", "/home/piecework")


def scrapes() -> list[tuple[str, dict[str, Any]]]:
    """Every target of prometheus.yml with the configuration of its job."""
    return [
        (target, job)
        for job in PROMETHEUS["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    ]


def test_every_service_has_a_health_check_and_waits_for_healthy_ones() -> None:
    for name, service in SERVICES.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES and how == {"condition": "service_healthy"}, name


def test_every_published_port_is_one_that_its_service_listens_on() -> None:
    for name in OURS:
        for pair in SERVICES[name].get("ports", []):
            _, inside = pair.split(":")
            assert f"--port {inside}" in " ".join(SERVICES[name]["command"]), name


def test_prometheus_scrapes_every_server_where_it_listens_and_by_the_name_it_answers_to() -> None:
    assert {target.split(":")[0] for target, _ in scrapes()} == {"worker", "gateway", "index"}
    for target, job in scrapes():
        host, port = target.split(":")
        assert re.search(rf"--(admin-)?port {port}\b", " ".join(SERVICES[host]["command"])), target
        assert job.get("metrics_path", "/metrics") == "/metrics"
    # The worker's admin port refuses a Host header that is not its own name.
    worker = SERVICES["worker"]["environment"]
    assert worker["PIECEWORK_WORKER_ADMIN_HOST"] == "worker"
    assert "http://worker:" in SERVICES["worker"]["healthcheck"]["test"][-1]
    mounts = [mount.split(":")[:2] for mount in SERVICES["prometheus"]["volumes"]]
    assert {(ROOT / here).resolve() for here, _ in mounts} == {
        ROOT / "deploy" / "prometheus.yml",
        *(ROOT / "deploy" / name for name in PROMETHEUS["rule_files"]),
    }
    assert all(Path(here).name == Path(there).name for here, there in mounts)


async def test_the_composed_market_comes_up_serves_a_completion_and_shows_its_metrics(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    order = TopologicalSorter({name: SERVICES[name].get("depends_on", {}) for name in OURS})
    async with contextlib.AsyncExitStack() as stack, aiohttp.ClientSession() as http:
        for name in order.static_order():
            service = await stack.enter_async_context(place.started(name))
            await place.wait_until_healthy(name, service)
        key = SERVICES["gateway"]["environment"]["PIECEWORK_CLIENT_GATEWAY_API_KEY"]
        body = {
            "model": "tiny-stories",
            "messages": [{"role": "user", "content": "Write about a fox."}],
        }
        async with http.post(
            place.here("http://gateway:8400/v1/chat/completions"),
            json={**body, "max_tokens": 64},
            headers={"authorization": f"Bearer {key}"},
        ) as response:
            answer = await response.json()
            assert response.status == 200, answer
        assert answer["choices"][0]["message"]["content"]
        for target, job in scrapes():
            credentials = job.get("authorization", {}).get("credentials", "")
            headers = {"authorization": f"Bearer {credentials}"} if credentials else {}
            async with http.get(
                place.here(f"http://{target}/metrics"), headers=headers
            ) as response:
                text = await response.text()
                assert response.status == 200 and "piecework_" in text, (target, text)


@dataclass
class Place:
    """This machine in the part of all the containers."""

    root: Path
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for folder in FOLDERS:
            (self.root / folder.strip("/")).mkdir(parents=True)

    def here(self, text: str) -> str:
        """A text of the compose file as it has to read on this machine."""
        hosts = "|".join(re.escape(host) for host in (*SERVICES, "0.0.0.0", LOOPBACK))  # noqa: S104
        folders = "|".join(FOLDERS)
        text = re.sub(rf"(?<![\w/])({folders})/", lambda m: f"{self.root}{m[1]}/", text)
        text = re.sub(
            rf"(?<![\w.])({hosts}):(\d+)", lambda m: f"{LOOPBACK}:{self.port(m[2])}", text
        )
        text = re.sub(r"(?<=port )\d+", lambda m: str(self.port(m[0])), text)
        return text.replace("--host 0.0.0.0", f"--host {LOOPBACK}")

    def port(self, number: str) -> int:
        """A free port in the place of a fixed one; the same for the same."""
        return self.ports.setdefault(number, free_port())

    def command(self, parts: list[str]) -> list[str]:
        """A command with its words substituted; the value of an option may be a word of its own."""
        found = []
        for option, part in zip(["", *parts], parts, strict=False):
            if option in ("--port", "--admin-port"):
                found.append(str(self.port(part)))
            else:
                found.append(LOOPBACK if option == "--host" else self.here(part))
        return found

    def environment(self, name: str) -> dict[str, str]:
        """What the container would see, and the programs of this installation first in the path."""
        given: dict[str, str] = SERVICES[name].get("environment", {})
        said = {key: LOOPBACK if value in SERVICES else value for key, value in given.items()}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, **said, "PATH": path}

    @asynccontextmanager
    async def started(self, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """One service, with its log in a file; ended with everything that it started."""
        with self.log(name).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *self.command(SERVICES[name]["command"]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(name),
                cwd=self.root,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            await _end(process)

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    async def wait_until_healthy(self, name: str, service: asyncio.subprocess.Process) -> None:
        """Ask the service's own health check again and again, with a bound."""
        said = b""
        healthy = False

        async def over() -> bool:
            nonlocal said, healthy
            if service.returncode is not None:
                return True
            code, said = await self._check(name)
            healthy = code == 0
            return healthy

        with contextlib.suppress(TimeoutError):
            await until(over, within_s=HEALTHY_WITHIN_S, poll_s=POLL_S)
        if healthy:
            return
        log = self.log(name).read_text()[-3000:]
        raise AssertionError(
            f"{name} is not healthy (exit {service.returncode}): {said.decode()}\n{log}"
        )

    async def _check(self, name: str) -> tuple[int, bytes]:
        _, *command = SERVICES[name]["healthcheck"]["test"]
        process = await asyncio.create_subprocess_exec(
            *self.command(command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self.environment(name),
            cwd=self.root,
        )
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, out


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to the service, then SIGKILL to whatever is left of its group."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
