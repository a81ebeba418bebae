"""`piecework chain` as a person and as a parent process see it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from piecework.chain.deployment import Deployment
from piecework.chain.dev.anvil import Anvil
from piecework.chain.sending.deploy import DEFAULT_UNBONDING_DELAY_S
from piecework.processes import Role
from piecework_protocol.types import Amount, to_hex
from tests.support.chain.chains import ETHER, USD, require_anvil, signer

pytestmark = pytest.mark.process

OTHER = to_hex(signer("other").address)


async def command(
    *arguments: str, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Run `piecework chain ARGUMENTS` to its end: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "piecework", "chain", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.parametrize("kind", [(), ("--anvil",)], ids=["embedded", "anvil"])
async def test_a_development_chain_says_when_it_is_ready_and_stops_when_told(
    kind: tuple[str, ...], tmp_path: Path
) -> None:
    if kind:
        require_anvil()
    file = tmp_path / "deployment.json"
    arguments = ("chain", "dev", "--port", "0", "--deployment", str(file), *kind)
    role = await Role.start("chain", arguments, tmp_path / "chain.log")
    try:
        assert role.ready["role"] == "chain"
        assert json.loads(file.read_text()) == role.ready["deployment"]
        given = await command(
            *(
                "faucet",
                "--deployment",
                str(file),
                "--to",
                OTHER,
                "--native",
                "0.5",
                "--tokens",
                "2.5",
                "--json",
            )
        )
        assert given[0] == 0, given[2]
        assert json.loads(given[1]) == {"to": OTHER, "native": ETHER // 2, "tokens": 2_500_000}
        code, out, _ = await command("status", "--deployment", str(file), "--json")
        state: dict[str, Any] = json.loads(out)
        assert code == 0
        assert state["contracts_match_build"]
        assert state["found"] == {"factory": "ours", "escrow": "ours", "registry": "ours"}
        assert state["contracts"].items() > role.ready["contracts"].items()
        assert (state["workers"], state["min_stake"]) == (0, 100 * USD)
    finally:
        assert await role.stop() == 0
    code, out, err = await command("status", "--deployment", str(file))
    assert (code, out) == (1, "")
    assert err.startswith("error: the chain's node at http://127.0.0.1:")
    assert err.count("\n") == 1


async def test_a_market_is_deployed_from_a_keystore(anvil: Anvil, tmp_path: Path) -> None:
    keystore = tmp_path / "key.json"
    keystore.write_text(
        json.dumps(Account.encrypt(anvil.faucet.secret, "right", kdf="pbkdf2", iterations=1000))
    )
    out = tmp_path / "deployment.json"
    base = (
        "deploy",
        "--rpc",
        anvil.url,
        "--key-file",
        str(keystore),
        "--out",
        str(out),
        "--min-stake",
        "7",
    )
    code, _, err = await command(*base, environment={"PIECEWORK_PASSWORD": "wrong"})
    assert code == 1
    assert err == f"error: {keystore} does not open with this password\n"
    assert not out.exists()
    code, printed, err = await command(*base, "--json", environment={"PIECEWORK_PASSWORD": "right"})
    assert code == 0, err
    file = json.loads(out.read_text())
    made = Deployment.load(out)
    addresses = {"escrow": to_hex(made.escrow), "registry": to_hex(made.registry)}
    assert json.loads(printed) == {"file": str(out), "contracts": addresses, **file}
    code, _, err = await command(*base, environment={"PIECEWORK_PASSWORD": "right"})
    assert code == 1
    assert "is there already" in err


async def test_a_deployer_without_key_or_gas_is_told_what_to_do(
    anvil: Anvil, tmp_path: Path
) -> None:
    base = ("deploy", "--rpc", anvil.url, "--out", str(tmp_path / "d.json"))
    code, _, err = await command(*base)
    assert (code, err.count("\n")) == (1, 1)
    assert "PIECEWORK_DEPLOYER_KEY" in err
    for key, words in (
        ("0x12", "not a private key"),
        ("00" * 32, "not a private key"),
        ("07" * 32, "native coin"),
    ):
        code, _, err = await command(*base, environment={"PIECEWORK_DEPLOYER_KEY": key})
        assert (code, err.count("\n")) == (1, 1)
        assert words in err
        assert key not in err


async def test_the_faucet_key_is_not_for_public_chains(tmp_path: Path) -> None:
    require_anvil()
    async with Anvil(chain_id=8453) as public:
        code, _, err = await command(
            "deploy", "--rpc", public.url, "--faucet-key", "--out", str(tmp_path / "d.json")
        )
    assert code == 1
    assert "not a development chain" in err


async def test_a_place_that_is_not_for_a_deployment_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    for place, words in (
        (tmp_path, f"is a directory. Name the file: {tmp_path}/deployment.json"),
        (precious, "is not a development chain's deployment"),
        (tmp_path / "none" / "d.json", "there is no directory"),
    ):
        code, out, err = await command("dev", "--port", "0", "--deployment", str(place))
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert words in err
    code, _, err = await command("deploy", "--rpc", "http://127.0.0.1:1", "--out", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert "is a directory" in err
    assert precious.read_text() == "precious"


async def test_status_shows_the_addresses_and_what_is_there_on_a_chain_without_contracts(
    anvil: Anvil, tmp_path: Path
) -> None:
    made = Deployment(
        anvil.chain_id, signer("token").address, "tUSDC", 6, Amount(5), DEFAULT_UNBONDING_DELAY_S
    )
    file = tmp_path / "deployment.json"
    made.save(file)
    code, out, err = await command("status", "--deployment", str(file))
    assert (code, out) == (1, "")
    assert "no node of chain 31337 is known" in err
    code, out, err = await command("status", "--deployment", str(file), "--rpc", anvil.url)
    assert code == 1
    assert f"escrow       {to_hex(made.escrow)}, nothing is there" in out
    assert f"registry     {to_hex(made.registry)}, nothing is there" in out
    assert "code is this program's" in out  # the factory
    assert err.count("\n") == 1
