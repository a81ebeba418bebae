"""`piecework market describe|verify`: the mark that a market's token is a dollar."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from piecework.chain.deployment import Deployment
from piecework.commands import market
from piecework_protocol.types import Address, Amount, Seconds
from tests.support.system.worker_process import PASSWORD, write_key

DEPLOYMENT = Deployment(
    84532, Address(b"\x03" * 20), "tUSDC", 6, Amount(10**8), Seconds(7 * 24 * 3600)
)


def describe(folder: Path, *more: str) -> Any:
    """Write the descriptor of a folder as a person does, with JSON for an answer."""
    file, key = folder / "deployment.json", folder / "key.json"
    if not key.exists():
        DEPLOYMENT.save(file)
        write_key(key, b"\x05" * 32)
    return CliRunner().invoke(
        market.app,
        [
            *("describe", "--deployment", str(file), "--out", str(folder / "market.json")),
            *("--key", str(key), "--json", *more),
        ],
        env={"PIECEWORK_PASSWORD": PASSWORD},
    )


def test_a_mark_is_set_by_a_flag_and_kept_until_another_flag_takes_it_away(tmp_path: Path) -> None:
    """Whoever only adds a relay must not change what a token is worth."""
    said = [
        json.loads(describe(tmp_path, *more).stdout)["token_is_usd"]
        for more in ((), ("--token-is-usd",), (), ("--no-token-is-usd",), ())
    ]
    assert said == [False, True, True, False, False]


def test_a_mark_is_not_handed_on_to_another_token(tmp_path: Path) -> None:
    assert json.loads(describe(tmp_path, "--token-is-usd").stdout)["token_is_usd"]
    other = replace(DEPLOYMENT, token=Address(b"\x04" * 20), token_decimals=18)
    other.save(tmp_path / "deployment.json")
    assert not json.loads(describe(tmp_path).stdout)["token_is_usd"]


def test_a_mark_is_shown_to_whoever_verifies(tmp_path: Path) -> None:
    place = str(tmp_path / "market.json")
    for more, shown in (((), False), (("--token-is-usd",), True)):
        assert describe(tmp_path, *more).exit_code == 0
        said = CliRunner().invoke(market.app, ["verify", place])
        assert said.exit_code == 0 and ("1 tUSDC is 1 USD" in said.stdout) is shown, said.output


def test_a_token_that_a_faucet_gives_away_is_not_marked(tmp_path: Path) -> None:
    refused = describe(tmp_path, "--token-is-usd", "--faucet", "https://faucet.example.org")
    assert refused.exit_code == 1
    assert "a token that a faucet gives away is not a dollar" in refused.stderr
    assert not (tmp_path / "market.json").exists()
