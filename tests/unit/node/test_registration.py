"""`worker init` on a home that is there: the same again is fine, something else is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.deployment import Deployment
from piecework_node.daemon.registration import check_asked, prepare_home
from piecework_node.errors import HomeDiffers
from piecework_node.home import Home
from piecework_protocol.types import Address, Amount, Seconds, Timestamp, to_hex

PAYOUT = "0x000000000000000000000000000000000000bEEF"
MARKET = Deployment(31337, Address(b"\x03" * 20), "tUSDC", 6, Amount(10**8), Seconds(7 * 24 * 3600))
VALUES: dict[str, Any] = {"payout": PAYOUT, "slots": 2, "indexes": ("http://127.0.0.1:8380",)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("worker"))
    prepare_home(made, MARKET, VALUES, "password", Timestamp(1_800_000_000))
    return made


def test_the_same_options_again_are_fine(home: Home) -> None:
    check_asked(home, MARKET, VALUES)
    check_asked(home, MARKET, {"payout": PAYOUT.lower()})
    check_asked(home, MARKET, {"price_per_million_output_tokens": "0.20 tUSDC"})
    check_asked(home, MARKET, {})


def test_a_home_that_is_not_there_takes_any_option(tmp_path: Path) -> None:
    check_asked(Home(tmp_path / "new"), MARKET, VALUES)


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"payout": "0x" + "ab" * 20}, f'payout = "0x{"ab" * 20}"'),
        ({"slots": 7, "indexes": VALUES["indexes"]}, "slots = 7"),
        ({"indexes": ()}, "indexes = []"),
        (
            {"slots": 7, "price_per_million_output_tokens": "9.00 tUSDC"},
            'slots = 7; price_per_million_output_tokens = "9.00 tUSDC"',
        ),
    ],
)
def test_other_settings_are_refused_with_what_to_edit(
    home: Home, asked: dict[str, Any], line: str
) -> None:
    with pytest.raises(HomeDiffers) as caught:
        check_asked(home, MARKET, asked)
    assert str(caught.value) == f"{home.config} has other settings. Edit it: {line}"


def test_another_market_is_refused(home: Home) -> None:
    other = replace(MARKET, token=Address(b"\x09" * 20))
    with pytest.raises(HomeDiffers, match=to_hex(MARKET.registry)):
        check_asked(home, other, {})
