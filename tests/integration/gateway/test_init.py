"""Making a client's home: killed at every step, repeated, and asked for something else."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from piecework.base.files import FileError
from piecework.chain.deployment import Deployment
from piecework.client.config import ClientHome, load_config
from piecework.client.errors import HomeError
from piecework.client.journal.store import Store
from piecework.client.setup import SetUp, set_up
from piecework_protocol.types import Address, Amount, Seconds
from tests.support.client.dying_setup import PASSWORD

ROOT = Path(__file__).resolve().parents[3]
FILES = {"deployment.json", "config.toml", "wallet.json"}
MOST_STEPS = 60
DEPLOYMENT = Deployment(
    chain_id=31337,
    token=Address(b"\x33" * 20),
    token_symbol="tUSDC",
    token_decimals=6,
    min_stake=Amount(100_000_000),
    unbonding_delay_s=Seconds(7 * 24 * 3600),
    from_block=1,
    rpc_url="http://127.0.0.1:8545",
)

pytestmark = pytest.mark.slow


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    file = tmp_path / "deployment.json"
    DEPLOYMENT.save(file)
    return file


async def make(home: Path, deployment: Path, *indexes: str, second_key: bool = False) -> SetUp:
    return await set_up(home, deployment, indexes, second_key=second_key, password=lambda: PASSWORD)


async def killed_at(step: int, home: Path, deployment: Path) -> bool:
    """Run `client init` until a step; whether it got that far."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tests.support.client.dying_setup"),
        *(str(home), str(deployment), str(step)),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert process.returncode in (0, -9), err.decode()
    return process.returncode == -9


@pytest.mark.process
@pytest.mark.kill
async def test_a_kill_at_any_step_leaves_whole_files_and_init_can_be_repeated(
    tmp_path: Path, deployment: Path
) -> None:
    seen: list[set[str]] = []
    for step in range(MOST_STEPS):
        home = ClientHome(tmp_path / str(step))
        if not await killed_at(step, home.path, deployment):
            break
        there = {file.name for file in home.path.iterdir() if not file.name.startswith(".")}
        if home.wallet.name in there:
            assert json.loads(home.wallet.read_bytes())["version"] == 3
        if home.deployment.name in there:
            assert Deployment.load(home.deployment) == DEPLOYMENT
        if home.config.name in there:
            assert load_config(home.config, environment={}).indexes == ("http://index",)
        if there not in seen:  # each stage once: opening a wallet is slow on purpose
            seen.append(there)
            made = await make(home.path, deployment)
            assert set(made.created) == FILES - there
            whole = {file.name for file in home.path.iterdir() if not file.name.startswith(".")}
            assert whole == FILES
    else:
        pytest.fail("init never came to its end")
    assert seen == [
        set(),
        {"deployment.json"},
        {"deployment.json", "config.toml"},
        FILES,
    ]


async def test_a_second_run_keeps_everything_and_can_add_a_second_key(
    tmp_path: Path, deployment: Path
) -> None:
    home = tmp_path / "home"
    first = await make(home, deployment, "http://index")
    again = await make(home, deployment, "http://index")
    assert (again.payer, again.created) == (first.payer, ())
    more = await make(home, deployment, second_key=True)
    assert more.created == ("authorizer.json",)
    assert more.authorizer != more.payer == first.payer
    assert {file.stat().st_mode & 0o777 for file in home.iterdir()} == {0o600}
    assert home.stat().st_mode & 0o777 == 0o700


async def test_a_home_in_use_gets_no_second_key(tmp_path: Path, deployment: Path) -> None:
    home = ClientHome(tmp_path / "home")
    made = await make(home.path, deployment)
    Store(home.store, DEPLOYMENT.domain, made.payer).close()
    with pytest.raises(HomeError, match=r"^--second-key: .* is in use with one key"):
        await make(home.path, deployment, second_key=True)
    assert not home.authorizer.exists()


async def test_what_differs_from_a_home_is_said_and_nothing_changes(
    tmp_path: Path, deployment: Path
) -> None:
    home = ClientHome(tmp_path / "home")
    await make(home.path, deployment, "http://here")
    before = {file.name: file.read_bytes() for file in home.path.iterdir()}
    with pytest.raises(HomeError, match=r"other indexes: http://here.*\[\"http://there\"\]"):
        await make(home.path, deployment, "http://there", second_key=True)
    moved = tmp_path / "moved.json"
    other = DEPLOYMENT.to_json()
    moved.write_text(json.dumps({**other, "rpc_url": "http://localhost:8545"}))
    with pytest.raises(HomeError, match="differs from the given file in rpc_url"):
        await make(home.path, moved)
    moved.write_text(json.dumps({**other, "chain_id": 1}))
    with pytest.raises(HomeError, match="belongs to another market"):
        await make(home.path, moved)
    assert {file.name: file.read_bytes() for file in home.path.iterdir()} == before


async def test_the_settings_of_a_new_home_name_every_setting(
    tmp_path: Path, deployment: Path
) -> None:
    home = ClientHome(tmp_path / "home")
    await make(home.path, deployment)
    text = home.config.read_text()
    assert 'deposit = "1.0"' in text and "# max_job_price =" in text
    assert load_config(home.config, environment={}).indexes == ()


async def test_a_home_that_cannot_be_made_is_one_line(deployment: Path) -> None:
    with pytest.raises(FileError, match="cannot make the folder /proc/nowhere") as caught:
        await make(Path("/proc/nowhere"), deployment)
    assert "\n" not in str(caught.value)
