"""`worker check` names what is wrong with a checkpoint before a client can."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.deployment import Deployment
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_node.card_settings import CardSettings
from piecework_node.daemon import registration as enrolment
from piecework_node.daemon.checks import Checker, CheckResult
from piecework_node.home import Home
from piecework_node.keys.operator import create_keystore
from piecework_node.runtime.faults import CONDITIONS, Code
from piecework_protocol.types import Address, Amount, Seconds, Timestamp
from tests.support.clock import FakeClock
from tests.support.node.watched import WORKER, SharedChain, deployed_once
from tests.support.node_proxy import Kind, NodeProxy

NOWHERE = Deployment(
    chain_id=31337,
    token=Address(b"\x03" * 20),
    token_symbol="tUSDC",
    token_decimals=6,
    min_stake=Amount(100_000_000),
    unbonding_delay_s=Seconds(7 * 24 * 3600),
    rpc_url="http://127.0.0.1:9",
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(bundled_checkpoint_path(), folder)
    return folder


async def model_finding(
    root: Path, model: str | Path, store: str = "", item: str = "model", **settings: Any
) -> CheckResult:
    return (await findings_of(root, model, store, **settings))[item]


async def findings_of(
    root: Path, model: str | Path, store: str = "", **settings: Any
) -> dict[str, CheckResult]:
    """What a check finds of a home whose chain is nowhere, by item."""
    home = Home(root / "worker")
    payout = "0x00000000000000000000000000000000000000f1"
    values = {"payout": payout, "model": str(model), "model_store": store, **settings}
    enrolment.prepare_home(home, NOWHERE, values, "password", Timestamp(1_800_000_000))
    return {finding.item: finding for finding in await Checker(home, "password").run()}


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
    root: Path, proxy: NodeProxy, deployment: Deployment
) -> dict[str, CheckResult]:
    home = Home(root / "worker")
    values = {"payout": "0x00000000000000000000000000000000000000f1", "rpc_url": proxy.url}
    home.create()
    create_keystore(home.operator, "password", WORKER.secret, iterations=2)
    enrolment.prepare_home(home, deployment, values, "password", Timestamp(1_800_000_000))
    return {finding.item: finding for finding in await Checker(home, "password").run()}


async def test_a_healthy_node_passes_and_one_without_events_with_a_remark(tmp_path: Path) -> None:
    async with node_of_now() as (proxy, deployment):
        proxy.faults = {"eth_getLogs": Kind.MISSING}
        found = await node_findings(tmp_path, proxy, deployment)
    assert all(found[item].good for item in ("chain", "clock", "gas", "endpoint", "indexes")), found
    assert "Mind logs-refused" in found["chain"].detail


async def test_the_check_finds_what_the_running_worker_would(tmp_path: Path) -> None:
    async with node_of_now() as (proxy, deployment):
        proxy.faults = FAULTS
        found = await node_findings(tmp_path, proxy, deployment)
    assert found["clock"].good
    for item, codes in FOUND.items():
        assert not found[item].good
        for code in codes:
            assert code in found[item].detail
            assert CONDITIONS[Code(code)].remedy in found[item].detail


async def test_an_index_that_is_away_fails_the_check(tmp_path: Path) -> None:
    finding = await model_finding(tmp_path, "", item="indexes", indexes=("http://127.0.0.1:9",))
    assert not finding.good and "index-away: 127.0.0.1:9 does not answer" in finding.detail


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
    found = await findings_of(tmp_path, "", cards=cards)
    for item, good, detail in (
        ("precision of card exact", True, "float32"),
        ("precision of card quick", True, "bfloat16"),
        ("owner of card quick", True, "jobs pause for the command"),
        ("device of card gone", False, "the settings ask for a GPU"),
    ):
        assert found[item].good is good and detail in found[item].detail, found[item]
