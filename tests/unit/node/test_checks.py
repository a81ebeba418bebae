"""`worker check` names what is wrong with a checkpoint before a client can."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from piecework.base.clock import SystemClock
from piecework.chain.addresses import DisputeTerms
from piecework.chain.deployment import Deployment
from piecework.demo.market import free_port
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_node.card_settings import CardSettings
from piecework_node.home import Home
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import create_keystore, keystore_address
from piecework_node.operations import registration as enrolment
from piecework_node.operations.check_results import (
    IN_USE,
    ITEMS,
    NOT_CHECKED,
    CheckResult,
    Result,
    as_linkerd,
)
from piecework_node.operations.checks import Checker
from piecework_node.runtime.faults import CONDITIONS, Code, Fault
from piecework_protocol.types import Address, Amount, Seconds, Timestamp, parse_address
from tests.support.chain.node_proxy import Kind, NodeProxy
from tests.support.clock import FakeClock
from tests.support.node.records import records
from tests.support.node.watched import WORKER, SharedChain, deployed_once
from tests.unit.market.test_dialling import DiallingIndex
from tests.unit.node.test_admission import NOW

pytestmark = pytest.mark.model

NOWHERE = Deployment(
    chain_id=31337,
    token=Address(b"\x03" * 20),
    token_symbol="tUSDC",
    token_decimals=6,
    min_stake=Amount(100_000_000),
    unbonding_delay_s=Seconds(7 * 24 * 3600),
    rpc_url="http://127.0.0.1:9",
)
DISPUTES = DisputeTerms(Amount(500_000), 10**14, Amount(5_000_000))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(bundled_checkpoint_path(), folder)
    return folder


async def test_a_worker_that_is_still_starting_is_waited_for_and_not_thrown_away(
    tmp_path: Path,
) -> None:
    """Its journal is locked, it answers nothing yet, and it must keep its relays and its port."""
    home = Home(tmp_path / "worker")
    values = {"payout": "0x" + "f1" * 20, "relays": ("127.0.0.1:9",), "bind": "127.0.0.1:0"}
    enrolment.prepare_home(home, NOWHERE, values, "password", Timestamp(1_800_000_000))
    operator = parse_address("0x" + keystore_address(home.operator))
    journal = await SqliteJournal.open(home.journal, NOWHERE.domain, operator)
    try:
        findings = {f.item: f for f in await Checker(home, "password").run()}
    finally:
        await journal.close()
    found = findings["journal"]
    assert (found.result, found.code) == (Result.ERROR, IN_USE)
    assert "is still starting" in found.detail and found.remedy == "Run this again in a minute"
    for item in ("relays", "dialled", "ports"):
        assert findings[item].code == NOT_CHECKED, item


async def model_finding(
    root: Path, model: str | Path, store: str = "", item: str = "model", **settings: Any
) -> CheckResult:
    findings = await findings_of(root, model, store, **settings)
    return next(f for f in findings if f.item == item)


async def findings_of(
    root: Path, model: str | Path, store: str = "", **settings: Any
) -> list[CheckResult]:
    """What a check finds of a home whose chain is nowhere."""
    home = Home(root / "worker")
    payout = "0x00000000000000000000000000000000000000f1"
    values = {"payout": payout, "model": str(model), "model_store": store, **settings}
    enrolment.prepare_home(home, NOWHERE, values, "password", Timestamp(1_800_000_000))
    findings = await Checker(home, "password").run()
    for finding in findings:
        assert (finding.result is Result.SUCCESS) == (not finding.code and not finding.remedy)
    return findings


async def test_a_whole_checkpoint_is_held_to_its_manifest(tmp_path: Path, checkpoint: Path) -> None:
    finding = await model_finding(tmp_path, checkpoint)
    assert finding.good and "as its manifest says" in finding.detail


async def test_one_flipped_byte_in_the_weights_is_named(tmp_path: Path, checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    finding = await model_finding(tmp_path, checkpoint)
    assert not finding.good and "model.safetensors" in finding.detail


async def test_a_model_that_is_not_pulled_is_named_with_the_command_to_run(tmp_path: Path) -> None:
    finding = await model_finding(tmp_path, "example/tiny", str(tmp_path / "models"))
    assert not finding.good
    assert finding.detail.endswith(
        f"Run: piecework models pull example/tiny --store {tmp_path / 'models'}"
    )


async def test_the_precision_that_fits_is_named_with_the_reason(
    tmp_path: Path, checkpoint: Path
) -> None:
    finding = await model_finding(
        tmp_path, checkpoint, item="precision", device="cpu", precision="int4"
    )
    assert (
        finding.good and finding.detail.startswith("int4: takes ") and "as asked" in finding.detail
    )


FAULTS = {
    "eth_getBalance": Kind.LIES,
    "eth_estimateGas": Kind.LIMITED,
    "eth_getTransactionReceipt": Kind.MISSING,
    "eth_getTransactionCount": Kind.WRONG_TYPE,
}
FOUND = {"chain": ("node-limited", "node-incomplete", "node-broken"), "gas": ("gas-low",)}


@asynccontextmanager
async def node_of_now() -> AsyncIterator[tuple[NodeProxy, Deployment]]:
    """A node of a market whose blocks are of now, with a proxy in front."""
    chain = SharedChain(FakeClock(time.time()))
    async with NodeProxy(chain.answer).serving() as proxy:
        yield proxy, await deployed_once(chain, proxy)


async def node_findings(
    root: Path, proxy: NodeProxy, deployment: Deployment, **settings: Any
) -> dict[str, list[CheckResult]]:
    home = Home(root / "worker")
    payout = "0x00000000000000000000000000000000000000f1"
    values = {"payout": payout, "rpc_url": proxy.url, **settings}
    home.create()
    create_keystore(home.operator, "password", WORKER.secret, iterations=2)
    enrolment.prepare_home(home, deployment, values, "password", Timestamp(1_800_000_000))
    found: dict[str, list[CheckResult]] = {}
    for finding in await Checker(home, "password").run():
        found.setdefault(finding.item, []).append(finding)
    return found


def codes(findings: list[CheckResult]) -> set[str]:
    return {finding.code for finding in findings if finding.result is Result.ERROR}


async def test_a_healthy_node_passes_and_one_without_events_with_a_remark(tmp_path: Path) -> None:
    async with node_of_now() as (proxy, deployment):
        proxy.faults = {"eth_getLogs": Kind.MISSING}
        found = await node_findings(tmp_path, proxy, deployment)
    for item in ("chain", "clock", "gas", "endpoint", "indexes", "ports"):
        assert not codes(found[item]), found
    remark = found["chain"][-1]
    assert (remark.result, remark.code) == (Result.WARNING, "logs-refused")
    assert codes(found["stake"]) == {"not-registered"}


async def test_the_check_finds_what_the_running_worker_would(tmp_path: Path) -> None:
    async with node_of_now() as (proxy, deployment):
        proxy.faults = FAULTS
        found = await node_findings(tmp_path, proxy, deployment)
    assert not codes(found["clock"])
    for item, expected in FOUND.items():
        assert codes(found[item]) == set(expected)
        for finding in found[item]:
            assert finding.remedy == CONDITIONS[Code(finding.code)].remedy


async def test_a_node_that_sends_no_transactions_is_found_before_a_settlement(
    tmp_path: Path,
) -> None:
    async with node_of_now() as (proxy, deployment):
        proxy.faults = {"eth_sendRawTransaction": Kind.MISSING}
        found = await node_findings(tmp_path, proxy, deployment)
    assert codes(found["chain"]) == {"node-incomplete"}
    assert "eth_sendRawTransaction" in found["chain"][0].detail


async def test_an_index_that_is_away_fails_the_check(tmp_path: Path) -> None:
    finding = await model_finding(tmp_path, "", item="indexes", indexes=("http://127.0.0.1:9",))
    assert (finding.result, finding.code) == (Result.ERROR, "index-away")
    assert "127.0.0.1:9 does not answer" in finding.detail


async def test_what_needs_an_item_that_failed_says_so(tmp_path: Path) -> None:
    finding = await model_finding(tmp_path, "", item="stake")
    assert (finding.result, finding.code) == (Result.ERROR, "node-away")
    finding = await model_finding(tmp_path, "", item="gas")
    assert (finding.result, finding.code) == (Result.ERROR, NOT_CHECKED)


# --- what others see


async def test_the_index_dials_a_worker_that_does_not_run_yet(tmp_path: Path) -> None:
    """The check itself answers TLS on the worker's port while the index dials it."""
    index, port = DiallingIndex(tmp_path), free_port()
    index.chain.register(WORKER.address, WORKER.address)
    async with node_of_now() as (proxy, deployment), served_at(index, deployment) as url:
        settings = {"bind": f"127.0.0.1:{port}", "indexes": (url,)}
        found = await node_findings(tmp_path, proxy, deployment, **settings)
        assert [(f.result, f.code) for f in found["dialled"]] == [(Result.SUCCESS, "")]
        assert f"reached 127.0.0.1:{port}" in found["dialled"][0].detail


async def test_an_address_that_the_index_cannot_dial_fails_with_its_remedy(tmp_path: Path) -> None:
    index, port = DiallingIndex(tmp_path), free_port()
    index.chain.register(WORKER.address, WORKER.address)
    async with node_of_now() as (proxy, deployment), served_at(index, deployment) as url:
        settings = {"bind": f"127.0.0.1:{port}", "endpoint": "127.0.0.1:1", "indexes": (url,)}
        found = await node_findings(tmp_path, proxy, deployment, **settings)
    (finding,) = found["dialled"]
    assert (finding.result, finding.code) == (Result.ERROR, "address-unreached")
    assert "no-answer" in finding.detail and "router" in finding.remedy


@asynccontextmanager
async def served_at(index: DiallingIndex, deployment: Deployment) -> AsyncIterator[str]:
    """An index of the market of a deployment, on a port of its own."""
    index.use(deployment.domain, SystemClock())
    async with index.opened() as application, TestServer(application) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_jobs_of_another_engine_are_told_before_a_start(tmp_path: Path) -> None:
    market = replace(NOWHERE, disputes=DISPUTES)
    home, payout = Home(tmp_path / "worker"), "0x00000000000000000000000000000000000000f1"
    enrolment.prepare_home(
        home, market, {"payout": payout, "device": "cpu"}, "password", Timestamp(1_800_000_000)
    )
    operator = parse_address("0x" + keystore_address(home.operator))
    journal = await SqliteJournal.open(home.journal, market.domain, operator)
    for record in records()[:-1]:  # the last one lets go of what jobs were sealed with
        await journal.append([record])
    await journal.close()
    clock = FakeClock(NOW)  # of those records
    findings = await Checker(home, "password", clock=clock).run()
    findings = [finding for finding in findings if finding.item == "audits"]
    assert [(f.result, f.code) for f in findings] == [(Result.WARNING, "engine-changed")]
    assert "may be challenged until" in findings[0].detail
    assert "and the engine is" in findings[0].detail


# --- for programs and people


def test_the_json_has_the_shape_of_linkerd_check() -> None:
    """The members of linkerd2's `checkOutput`, `checkCategory` and `check` (`pkg/healthcheck`)."""
    findings = [
        CheckResult("settings", Result.SUCCESS, "config.toml"),
        CheckResult.of("gas", Fault(Code.GAS_LOW, "0 wei"), Result.ERROR),
        CheckResult.of("stake", Fault(Code.ENDPOINT_DIFFERS, "b:1"), Result.WARNING),
    ]
    shown = as_linkerd(findings)
    assert shown["success"] is False
    assert [c["categoryName"] for c in shown["categories"]] == ["home", "chain"]
    (settings,), chain = (category["checks"] for category in shown["categories"])
    assert (settings["description"], settings["result"]) == ("settings", "success")
    assert [(c["result"], c["code"]) for c in chain] == [
        ("error", "gas-low"),
        ("warning", "endpoint-differs"),
    ]
    assert all(check["hint"] and check["error"] for check in chain)


def test_every_item_has_a_code_of_its_own_and_a_remedy() -> None:
    own = [item.code for item in ITEMS.values()]
    assert len(set(own)) == len(own)
    assert not set(own) & {code.value for code in Code}
    assert all(item.remedy for item in ITEMS.values())
    failed = CheckResult.failed("model", "model.safetensors differs")
    assert failed.lines == (
        "FAIL  model          model.safetensors differs",
        "      model-bad: Run the command that the line names",
    )


async def test_fast_paths_are_named_in_one_line(tmp_path: Path, checkpoint: Path) -> None:
    finding = await model_finding(tmp_path, checkpoint, item="fast paths", device="cpu")
    assert finding.good and finding.detail == "none on a CPU"
    finding = await model_finding(tmp_path / "b", checkpoint, item="fast paths", device="cuda")
    assert not finding.good and "the settings ask for a GPU" in finding.detail


async def test_each_of_several_cards_is_checked_by_its_own_settings(tmp_path: Path) -> None:
    cards = (
        CardSettings(name="exact", device="cpu", precision="float32"),
        CardSettings(name="quick", device="cpu", precision="bfloat16"),
        CardSettings(name="gone", device="cuda", gpu_number=7),
    )
    findings = await findings_of(tmp_path, "", cards=cards)
    found = {(finding.card, finding.item): finding for finding in findings}
    for card, item, code, detail in (
        ("exact", "precision", "", "float32"),
        ("quick", "precision", "", "bfloat16"),
        ("quick", "owner", "", "jobs pause for the command"),
        ("gone", "device", "device-missing", "the settings ask for a GPU"),
    ):
        finding = found[card, item]
        assert (finding.code, detail in finding.detail) == (code, True), finding
    assert len([item for card, item in found if not card and item == "audits"]) == 1
    assert [card for card, item in found if item == "ports"] == [""]
    checks = {
        c["description"]: c for one in as_linkerd(findings)["categories"] for c in one["checks"]
    }
    assert checks["device of card gone"]["code"] == "device-missing"
    assert found["gone", "device"].lines[0].startswith("FAIL  device of card gone the settings")
