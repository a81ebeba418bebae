"""What a home takes from a market's descriptor, and what stays its owner's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from piecework.chain.deployment import Deployment
from piecework.chain.descriptor import MarketDescriptor
from piecework.commands._worker.join import Wishes, settings_for
from piecework_node import config
from piecework_node.home import Home
from piecework_node.operations.joining import follow
from piecework_protocol.types import Address, Amount, Seconds

PAYOUT = "0x" + "f1" * 20
PRICES = dict.fromkeys(
    (
        "price_per_million_prompt_tokens",
        "price_per_million_output_tokens",
        "price_per_thousand_steps",
    ),
    "0.1 USDC",
)
DEPLOYMENT = Deployment(
    *(8453, Address(b"\x33" * 20), "USDC", 6, Amount(10**8), Seconds(604_800)),
    rpc_url="http://127.0.0.1:9",
)
PLAIN = MarketDescriptor(DEPLOYMENT)
MARKED = replace(PLAIN, token_is_usd=True, sequence=2)


def joined(root: Path, market: MarketDescriptor, **given: object) -> config.WorkerConfig:
    """The settings of a new home."""
    wishes = Wishes({"payout": PAYOUT, **given}, ("", "", ""), None, "", None, False)
    values = settings_for(Home(root), market, wishes, PRICES)
    Home(root).config.write_text(config.to_toml(values))
    return config.load(root, environment={})


def test_a_market_that_does_not_mark_its_token_shows_no_dollars(tmp_path: Path) -> None:
    assert joined(tmp_path, PLAIN).usd_per_token == 0


def test_a_mark_is_the_default_of_the_owners_own_price(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert joined(tmp_path, MARKED).usd_per_token == 1
    assert "1 USDC is 1 USD" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    assert joined(tmp_path / "other", MARKED, usd_per_token=0.5).usd_per_token == 0.5
    assert "1 USD" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (PLAIN, MARKED, "the market now says that its token is 1 USD. Your usd_per_token stays 0."),
        (MARKED, replace(PLAIN, sequence=3), "no longer says that its token is 1 USD."),
    ],
)
def test_a_mark_that_comes_or_goes_is_said_and_changes_no_setting(
    tmp_path: Path, before: MarketDescriptor, after: MarketDescriptor, said: str
) -> None:
    made = joined(tmp_path, before)
    (line,) = follow(Home(tmp_path), before, after)
    assert said in line and f"set usd_per_token {int(after.token_is_usd)}" in line
    assert config.load(tmp_path, environment={}) == made
    assert follow(Home(tmp_path), after, after) == []


def test_a_mark_that_the_owner_follows_already_needs_no_line(tmp_path: Path) -> None:
    joined(tmp_path, PLAIN, usd_per_token=1)
    assert follow(Home(tmp_path), PLAIN, MARKED) == []
