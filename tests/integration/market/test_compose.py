"""docker-compose.yml without Docker: its commands as processes, its health checks, its Prometheus
targets.

`tests.support.system.containers` puts there what a container gives.
"""

from __future__ import annotations

import contextlib
import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.support.system.containers import ComposePlace

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("piecework")]


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


def test_no_service_asks_another_through_a_proxy_that_docker_hands_out() -> None:
    for name in OURS:
        for variable in ("NO_PROXY", "no_proxy"):
            assert set(OURS) <= set(SERVICES[name]["environment"][variable].split(",")), name


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
    place = ComposePlace(tmp_path, SERVICES)
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
