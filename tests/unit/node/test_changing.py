"""What `worker set` changes in a home, what it leaves alone, and what a running worker takes up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piecework.base.amounts import Token
from piecework.base.errors import PieceworkError, SettingsError
from piecework_node import config as settings
from piecework_node.daemon.changing import LIVE, prepare_change, with_live
from piecework_node.home import Home

TOKEN = Token(b"\x03" * 20, "tUSDC", 6)
PAYOUT = "0x000000000000000000000000000000000000bEEF"
WRITTEN = f"""\
payout = "{PAYOUT}"
# the going rate
price_per_thousand_steps = "0.001 tUSDC"
slots = 3
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "config.toml").write_text(WRITTEN)
    return Home(tmp_path)


def test_a_bare_number_is_tokens_and_is_written_with_its_unit(home: Home) -> None:
    change = prepare_change(home, TOKEN, {"price_per_thousand_steps": "0.0005"})
    assert home.config.read_text() == WRITTEN
    change.write()
    assert home.config.read_text() == WRITTEN.replace("0.001 tUSDC", "0.0005 tUSDC")
    assert home.config.stat().st_mode & 0o777 == 0o600
    assert change.names == {"price_per_thousand_steps"}
    assert settings.load(home.root, environment={}) == change.after


def test_the_same_value_in_other_words_is_written_and_setting_a_default_is_a_change(
    home: Home,
) -> None:
    assert prepare_change(home, TOKEN, {"slots": "3"}).names == frozenset()
    assert prepare_change(home, TOKEN, {"queue": "4"}).names == {"queue"}
    assert prepare_change(home, TOKEN, {}, ["queue"]).names == frozenset()
    assert prepare_change(home, TOKEN, {}, ["slots"]).names == {"slots"}


@pytest.mark.parametrize(
    ("texts", "unset", "said"),
    [
        ({"payout": PAYOUT}, (), "payout: the registry has it too. Run `piecework worker payout"),
        ({}, ("payout",), "payout: the registry has it too"),
        ({"price_per_million_output_tokens": "1 ETH"}, (), "pays in tUSDC"),
        (
            {"price_per_million_output_tokens": "-1"},
            (),
            "output_tokens: .*negative",
        ),
        ({"slots": "0"}, (), "slots must be a whole number from 1 to 256"),
        ({"slot": "1"}, (), "Did you mean slots"),
        ({"bind": ""}, (), "bind is empty and there are no relays"),
        ({"credit_first": "0.000001"}, (), "credit_first must be"),
        ({f"x{i}": "1" for i in range(65)}, (), "more than 64"),
    ],
)
def test_what_no_start_would_take_is_refused_and_changes_nothing(
    home: Home, texts: dict[str, str], unset: tuple[str, ...], said: str
) -> None:
    with pytest.raises(PieceworkError, match=said):
        prepare_change(home, TOKEN, texts, unset)
    assert home.config.read_text() == WRITTEN


OF_TWO_CARDS = """\
payout = "{payout}"
queue = 2

# the big one
[[cards]]
name = "a"
gpu_number = 0
slots = 8

[[cards]]
gpu_number = 1
precision = "int4"
"""


@pytest.mark.parametrize(
    ("texts", "unset", "said"),
    [
        ({"slots": "4"}, (), r"slots: .* table 1 of \[\[cards\]\] \(card a\)\. Edit it there"),
        ({}, ("precision",), r"precision: .* table 2 of \[\[cards\]\] \(card 1\)\."),
        ({"gpu_number": "3"}, (), r"\(card a\) and table 2 of .*\(card 1\)"),
        ({"cards": "x"}, (), "cards: a list of tables, one for each card. Edit config.toml"),
        ({}, ("cards",), "cards: a list of tables"),
    ],
)
def test_what_a_card_says_itself_is_refused_with_the_place_where_it_stands(
    home: Home, texts: dict[str, str], unset: tuple[str, ...], said: str
) -> None:
    written = OF_TWO_CARDS.format(payout=PAYOUT)
    home.config.write_text(written)
    with pytest.raises(PieceworkError, match=said):
        prepare_change(home, TOKEN, texts, unset)
    assert home.config.read_text() == written


def test_what_no_card_says_is_written_before_the_cards(home: Home) -> None:
    home.config.write_text(OF_TWO_CARDS.format(payout=PAYOUT))
    texts = {"queue": "5", "pause_gpu_share": "20", "price_per_thousand_steps": "0.002"}
    prepare_change(home, TOKEN, texts).write()
    after = settings.load(home.root, environment={})
    assert [(own.slots, own.queue, own.pause_gpu_share) for _, own in after.of_cards] == [
        (8, 5, 20),
        (2, 5, 20),
    ]
    assert after.price_per_thousand_steps == "0.002 tUSDC"
    text = home.config.read_text()
    assert text.endswith(OF_TWO_CARDS.partition("queue = 2\n")[2]), "the tables are as before"


def test_a_running_worker_takes_up_the_live_settings_alone() -> None:
    def made(**values: Any) -> settings.WorkerConfig:
        return settings.check({"payout": PAYOUT, **values})

    running = made(slots=3, price_per_thousand_steps="0.001 tUSDC", open_fee="1 tUSDC")
    wanted = made(slots=9, price_per_thousand_steps="0.002 tUSDC", credit_max="2 tUSDC")
    both = with_live(running, wanted)
    assert both == made(slots=3, price_per_thousand_steps="0.002 tUSDC", credit_max="2 tUSDC")
    assert both.model_fields_set & LIVE == {"price_per_thousand_steps", "credit_max"}
    with pytest.raises(SettingsError, match="only with a restart"):
        with_live(made(chain_outage_s=200), made(min_withdrawal_delay_s=300, chain_outage_s=60))
