"""`piecework gateway keys` in a home that `client init` made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from piecework.chain.deployment import Deployment
from piecework.chain.keystore import keystore_address
from piecework.cli import build
from piecework.client.config import ClientHome
from piecework.client.journal.store import Store
from piecework.client.wallet import create_key
from piecework_protocol.types import Address, Amount, Seconds, Timestamp, parse_address

WEEK = Seconds(7 * 24 * 3600)
MARKET = Deployment(31337, Address(b"\x33" * 20), "tUSDC", 6, Amount(100_000_000), WEEK)
NOW = Timestamp(1_800_000_000)


@pytest.fixture(scope="module")
def wallet(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A keystore. Making one is slow on purpose."""
    file = tmp_path_factory.mktemp("wallet") / "wallet.json"
    create_key(file, "correct horse")
    return file.read_bytes()


@pytest.fixture
def home(tmp_path: Path, wallet: bytes) -> ClientHome:
    home = ClientHome(tmp_path / "client")
    home.create()
    MARKET.save(home.deployment)
    home.wallet.write_bytes(wallet)
    return home


def keys(home: ClientHome, *arguments: str) -> Result:
    command = ["gateway", "keys", *arguments, "--home", str(home.path)]
    return CliRunner().invoke(build("gateway"), command)


def test_a_key_is_shown_once_and_only_its_hash_is_kept(home: ClientHome) -> None:
    made = keys(home, "add", "alice", "--per-day", "0.5", "--max-price", "0.02", "--expires", "90d")
    assert made.exit_code == 0, made.output
    key = made.stdout.splitlines()[0]
    assert key.startswith("pw-") and len(key) > 40
    listed = json.loads(keys(home, "list", "--json").stdout)
    (row,) = listed["keys"]
    assert (row["name"], row["state"], row["per_day"]) == ("alice", "valid", 500_000)
    assert (row["per_month"], row["max_price"], row["spent_today"]) == (None, 20_000, 0)
    assert row["expires_at"] - row["created_at"] == 90 * 86_400
    assert listed["token"]["symbol"] == "tUSDC"
    assert key.encode() not in home.store.read_bytes()
    text = keys(home, "list").stdout
    assert key not in text and "0 tUSDC of 0.50 tUSDC" in " ".join(text.split())


def test_a_name_is_used_once_until_its_key_is_revoked(home: ClientHome) -> None:
    assert keys(home, "add", "alice").exit_code == 0
    again = keys(home, "add", "alice")
    assert again.exit_code == 1 and "Revoke it first" in again.output
    assert keys(home, "revoke", "alice").exit_code == 0
    assert "is revoked already" in keys(home, "revoke", "alice").output
    assert json.loads(keys(home, "list", "--json").stdout)["keys"][0]["state"] == "revoked"
    assert keys(home, "add", "alice").exit_code == 0
    assert "no API key 'bob'" in keys(home, "revoke", "bob").output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a b",), "the name of an API key"),
        (("alice", "--per-day", "0"), "the amount is 0 tUSDC"),
        (("alice", "--per-month", "1.0000001"), "6 decimals"),
        (("alice", "--expires", "soon"), "--expires is a time"),
        (("alice", "--expires", "2001-01-01"), "lies in the past"),
        (("alice", "--expires", "9999999d"), "hundred years"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line_and_makes_no_key(
    home: ClientHome, arguments: tuple[str, ...], words: str
) -> None:
    refused = keys(home, "add", *arguments)
    assert refused.exit_code in (1, 2)
    assert words in refused.output
    assert json.loads(keys(home, "list", "--json").stdout)["keys"] == []


def test_the_journal_of_the_keys_is_the_clients(home: ClientHome) -> None:
    keys(home, "add", "alice")
    payer = parse_address("0x" + keystore_address(home.wallet))
    store = Store(home.store, MARKET.domain, payer)
    assert [key.name for key in store.api_keys.all()] == ["alice"]
    store.close()


def test_an_option_in_front_of_keys_is_refused_and_not_lost(home: ClientHome) -> None:
    command = ["gateway", "--home", str(home.path), "keys", "list"]
    refused = CliRunner().invoke(build("gateway"), command)
    assert refused.exit_code == 2
    assert "write --home after the command keys" in refused.output


def test_beyond_this_machine_the_gateway_asks_for_a_key_first(home: ClientHome) -> None:
    command = ["gateway", "--host", "0.0.0.0", "--home", str(home.path)]  # noqa: S104
    refused = CliRunner().invoke(build("gateway"), command)
    assert refused.exit_code == 2
    assert "piecework gateway keys add" in refused.output
