"""The owner of a signer writes limits in tokens and coins, and reads them so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from piecework.base.amounts import Token
from piecework.base.errors import SettingsError
from piecework.base.settings import check
from piecework.cli import build
from piecework.commands.signer import status_lines
from piecework.signer.book import LimitBook
from piecework.signer.config import SignerConfig, SignerHome, load
from piecework.signer.policy import NotSigned, Use
from piecework.signer.remote import SignerState
from piecework_protocol.types import to_hex
from tests.support.chain.signers import KEY, LIMITS, MARKET, PAYOUT, payouts

USD: Token = MARKET.payment_token
NOON = 20_000 * 86_400


def configured(**values: object) -> SignerConfig:
    return check(SignerConfig, {"payouts": payouts(PAYOUT), **values})


def test_limits_are_numbers_of_tokens_and_of_coins() -> None:
    limits = configured(daily_tokens="5 USD", daily_gas="0.5").limits(USD)
    assert (limits.tokens, limits.wei) == (5_000_000, 5 * 10**17)
    assert configured(daily_gas="2 coin").limits(USD).wei == 2 * 10**18
    assert configured(daily_gas=0, daily_tokens=0).limits(USD).wei == 0


def test_the_defaults_are_what_they_were() -> None:
    limits = configured().limits(USD)
    assert (limits.tokens, limits.wei) == (0, 20_000_000_000_000_000)


@pytest.mark.parametrize(
    ("name", "written", "meant"),
    [
        ("daily_tokens", 5, '"5 USD" if these are tokens, or "0.000005 USD"'),
        ("daily_tokens", "10000000", '"10000000 USD" if these are tokens, or "10.00 USD"'),
        ("daily_gas", 20_000_000_000_000_000, 'or "0.02 coin" if these are base units'),
        ("daily_gas", "0.5 ETH", "gas is counted in coin"),
        ("daily_tokens", "5 coin", "this market pays in USD"),
    ],
)
def test_a_limit_without_its_unit_is_refused_with_what_to_write(
    name: str, written: object, meant: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        configured(**{name: written}).limits(USD)
    assert str(refused.value).startswith(f"{name}: ") and meant in str(refused.value)


def test_status_shows_the_token_and_the_coin() -> None:
    state = SignerState(KEY.address, MARKET.chain_id, MARKET.registry, 7, 10**16, 5, 0, 3)
    text = "\n".join(status_lines(state, USD))
    assert "gas        0.01 coin left" in text
    assert "tokens     0.000005 USD left" in text
    assert "base units" not in text and "wei" not in text


def test_a_refusal_shows_the_token_and_the_coin(tmp_path: Path) -> None:
    book = LimitBook.open(tmp_path / "limits.db", LIMITS)
    with pytest.raises(NotSigned, match=r"takes 10\.50 USD\. 0\.00 USD of 10\.00 USD are used"):
        book.take(NOON, Use("permit", tokens=10_500_000))
    with pytest.raises(NotSigned, match=r"takes 1\.00 coin\. 0\.00 coin of 0\.01 coin are used"):
        book.take(NOON, Use("send", wei=10**18))
    book.close()


def test_a_new_home_has_its_limit_in_tokens(tmp_path: Path) -> None:
    file, home = tmp_path / "deployment.json", SignerHome(tmp_path / "signer")
    file.write_text(json.dumps(MARKET.to_json()))
    command = ("signer", "init", "--deployment", str(file), "--payout", to_hex(PAYOUT))
    made = CliRunner(env={"PIECEWORK_PASSWORD": "a password of ten words"}).invoke(
        build("signer"), [*command, "--home", str(home.root)]
    )
    assert made.exit_code == 0, made.output
    assert 'daily_tokens = "10.00 USD"' in home.config.read_text()
    assert '# daily_gas = "0.02"' in home.config.read_text()
    assert load(home, {}).limits(USD).tokens == MARKET.min_stake


def test_an_old_home_is_told_what_to_write(tmp_path: Path) -> None:
    home = SignerHome(tmp_path)
    home.config.write_text(f'payouts = ["{to_hex(PAYOUT)}"]\ndaily_tokens = 10000000\n')
    settings = load(home, {})
    with pytest.raises(SettingsError, match=r'or "10\.00 USD" if these are base units'):
        settings.limits(USD)
