"""`worker check` names what is wrong with a checkpoint before a client can."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.deployment import Deployment
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_node.daemon import registration as enrolment
from piecework_node.daemon.checks import Checker, Finding
from piecework_node.home import Home
from piecework_protocol.types import Address, Amount, Seconds, Timestamp

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
) -> Finding:
    home = Home(root / "worker")
    payout = "0x00000000000000000000000000000000000000f1"
    values = {"payout": payout, "model": str(model), "model_store": store, **settings}
    enrolment.prepare_home(home, NOWHERE, values, "password", Timestamp(1_800_000_000))
    findings = await Checker(home, "password").run()
    return next(f for f in findings if f.item == item)


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
