"""`worker init` on a home that is there: the same again is fine, something else is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.deployment import Deployment
from piecework.chain.reading.reader import RegisteredWorker
from piecework_node.card_settings import CardSettings
from piecework_node.errors import HomeDiffers
from piecework_node.home import Home
from piecework_node.operations.registration import check_asked, check_registered, prepare_home
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
    ("asked", "named", "line"),
    [
        ({"payout": "0x" + "ab" * 20}, "--payout", f"payout 0x{'ab' * 20}"),
        ({"slots": 7, "indexes": VALUES["indexes"]}, "slots", "set slots 7"),
        ({"indexes": ()}, "--index", "set indexes ''"),
        (
            {"slots": 7, "price_per_million_output_tokens": "9.00 tUSDC"},
            "slots, price_per_million_output_tokens",
            "set slots 7 price_per_million_output_tokens '9.00 tUSDC'",
        ),
    ],
)
def test_other_settings_are_refused_by_name_with_the_command_that_changes_them(
    home: Home, asked: dict[str, Any], named: str, line: str
) -> None:
    with pytest.raises(HomeDiffers) as caught:
        check_asked(home, MARKET, asked, flags={"payout": "--payout", "indexes": "--index"})
    said = f"{named}: {home.config} says something else. To change it: piecework worker {line}"
    assert str(caught.value) == said


def test_a_flag_is_held_to_the_tables_of_cards_too(tmp_path: Path) -> None:
    cards = (CardSettings(name="a", gpu_number=0, slots=4), CardSettings(gpu_number=1))
    made = Home(tmp_path / "worker")
    prepare_home(made, MARKET, {**VALUES, "cards": cards}, "password", Timestamp(1_800_000_000))
    check_asked(made, MARKET, {"payout": PAYOUT, "queue": 4})
    for asked in (2, 4):
        with pytest.raises(HomeDiffers) as caught:
            check_asked(made, MARKET, {"slots": asked})
        assert str(caught.value).startswith("slots: ")
        assert str(caught.value).endswith("edit slots in table 1 of [[cards]] (card a)")


def test_a_stake_and_an_owner_that_are_registered_are_not_replaced_by_flags() -> None:
    known = RegisteredWorker(
        owner=Address(b"\x0a" * 20),
        operator=Address(b"\x0b" * 20),
        payout=Address(b"\x0c" * 20),
        stake=Amount(10**8),
        endpoint="here:1",
        active=True,
        registered_at=Timestamp(1),
        unbond_requested_at=Timestamp(0),
    )
    token = MARKET.payment_token
    check_registered(known, stake=None, owner=None, token=token)
    check_registered(known, stake=10**8, owner=known.owner, token=token)
    with pytest.raises(HomeDiffers, match=r"--stake: 100\.00 tUSDC are staked already"):
        check_registered(known, stake=2 * 10**8, owner=None, token=token)
    with pytest.raises(HomeDiffers, match="--owner: the stake belongs to 0x0"):
        check_registered(known, stake=None, owner=known.payout, token=token)


def test_another_market_is_refused(home: Home) -> None:
    other = replace(MARKET, token=Address(b"\x09" * 20))
    with pytest.raises(HomeDiffers, match=to_hex(MARKET.registry)):
        check_asked(home, other, {})
