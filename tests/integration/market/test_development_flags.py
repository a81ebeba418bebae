"""What only development chains offer: a chain without contracts, and a deposit that costs nobody
anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.chain.dev.anvil import Anvil
from piecework.chain.sending.deploy import deploy
from piecework.processes import ProcessGroup
from tests.support.chain.chains import ETHER, MIN_STAKE, require_anvil
from tests.support.system.commands import piecework

pytestmark = pytest.mark.process

PASSWORD = {"PIECEWORK_PASSWORD": "a password of the tests"}


async def test_a_bare_chain_has_no_contracts_and_its_faucet_pays_a_deposit(
    tmp_path: Path,
) -> None:
    file, home = str(tmp_path / "deployment.json"), ("--home", str(tmp_path / "client"))
    async with ProcessGroup(tmp_path / "logs") as group:
        ready = (await group.start("chain", ["chain", "dev", "--bare", "--port", "0"])).ready
        assert set(ready) == {"ready", "role", "rpc_url", "faucet", "chain_id"}
        made = await piecework(
            "chain", "deploy", "--rpc", ready["rpc_url"], "--faucet-key", "--out", file, "--json"
        )
        assert made.json()["chain_id"] == ready["chain_id"]
        await piecework("client", "init", *home, "--deployment", file, environment=PASSWORD)
        deposit = ("client", "deposit", "2.5", "--faucet", "--json", *home)
        assert (await piecework(*deposit, environment=PASSWORD)).json()["amount"] == 2_500_000
        balance = (
            await piecework("client", "balance", "--json", *home, environment=PASSWORD)
        ).json()
        assert (balance["own"], balance["pooled"], balance["in_channels"]) == (0, 2_500_000, 0)
        assert 0 < balance["native_wei"] < ETHER


async def test_nothing_is_deployed_to_a_file_on_a_bare_chain(tmp_path: Path) -> None:
    file = tmp_path / "deployment.json"
    said = await piecework("chain", "dev", "--bare", "--deployment", str(file))
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: --bare deploys nothing")
    assert not file.exists()


async def test_no_other_chain_has_a_faucet_for_a_deposit(tmp_path: Path) -> None:
    require_anvil()
    file, home = tmp_path / "deployment.json", ("--home", str(tmp_path / "client"))
    async with Anvil(chain_id=8453) as public:
        made = await deploy(
            public.url,
            public.faucet,
            min_stake=MIN_STAKE,
            poll_s=0.02,
        )
        made.save(file)
        assert made.rpc_url is None  # everybody names a node of their own
        init = ("client", "init", *home, "--deployment", str(file))
        await piecework(*init, environment=PASSWORD)
        alone = await piecework("client", "balance", *home, environment=PASSWORD)
        assert "no node of chain 8453 is known" in alone.line()
        differs = await piecework(*init, "--rpc-url", public.url, environment=PASSWORD)
        assert "has another rpc_url" in differs.line()
        home = ("--home", str(tmp_path / "second"))
        init = ("client", "init", *home, "--deployment", str(file))
        await piecework(*init, "--rpc-url", public.url, environment=PASSWORD)
        refused = await piecework("client", "deposit", "1", "--faucet", *home, environment=PASSWORD)
        assert "not a development chain" in refused.line()
        gasless = ("--gasless", str(tmp_path / "deposit.json"))
        both = await piecework(
            "client", "deposit", "1", "--faucet", *gasless, *home, environment=PASSWORD
        )
        assert both.code == 2
        balance = await piecework("client", "balance", "--json", *home, environment=PASSWORD)
        assert balance.json()["pooled"] == 0
