"""What a worker would earn: every figure has a source, and what is unknown stays unknown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from piecework.chain.deployment import Deployment
from piecework.commands._worker.estimate import EstimateWishes, Estimator, watts_here
from piecework_node.config import check
from piecework_node.console.cards import CARDS
from piecework_node.console.estimate import (
    ASSUMED_UTILIZATION,
    DAY_S,
    MEAN_STEPS,
    AskedPrices,
    Estimate,
    Figure,
    WorkerSpeed,
    best_line,
    estimate,
    market,
    planned_speed,
)
from piecework_node.console.model import ShownMoney
from piecework_node.daemon.registration import prepare_home
from piecework_node.home import Home
from piecework_protocol.types import Amount, Seconds, Timestamp, parse_address

TOKEN = "0x" + "33" * 20
MONEY = ShownMoney("USDC", 6, 1.0, 0.36)
SPEED = WorkerSpeed(100.0, 10.0, "measured")
PRICES = AskedPrices(200_000, 1_000, "the market")


def offer(name: str = "m", output: int = 100, slots: int = 4, free: int = 1) -> dict[str, Any]:
    model = {
        "name": name,
        "digest": "0xab",
        "price_per_million_output_tokens": str(output),
        "price_per_thousand_steps": 7,
    }
    return {"models": [model], "slots": slots, "slots_free": free, "tokens": [TOKEN]}


def made(**changes: Any) -> Estimate:
    values: dict[str, Any] = {
        "utilization": Figure(0.5, "said"),
        "watts": Figure(400.0, "the maker"),
        "money": MONEY,
        "gas_a_day": Figure(5_000.0, "the chain"),
    }
    share = {**values, **changes}
    return estimate(SPEED, PRICES, share.pop("utilization"), **share)


def test_a_day_is_speed_times_prices_times_the_busy_time_less_power_and_gas() -> None:
    day = made()
    assert day.gross == DAY_S / 2 * (100 * 200_000 / 10**6 + 10 * 1_000 / 1000)
    assert day.power.value == pytest.approx(0.4 * 12 * 0.36 * 10**6)
    assert day.power.value is not None
    assert day.net == int(day.gross - day.power.value - 5_000)


@pytest.mark.parametrize(
    "changes",
    [
        {"watts": Figure(None, "no NVML")},
        {"gas_a_day": Figure(None, "no node")},
        {"money": replace(MONEY, usd_per_kwh=None)},
        {"money": replace(MONEY, usd_per_token=None)},
    ],
)
def test_net_is_unknown_where_power_or_gas_is(changes: dict[str, Any]) -> None:
    day = made(**changes)
    assert day.net is None and day.gross > 0
    assert all(f.source for f in (day.power, day.gas, day.utilization))


def test_an_unknown_utilization_is_assumed_and_says_so() -> None:
    day = made(utilization=Figure(None, "no index is set"))
    assert day.utilization.value == ASSUMED_UTILIZATION
    assert "assumed" in day.utilization.source and "no index" in day.utilization.source


def test_the_market_is_the_median_of_a_model_and_its_busy_slots() -> None:
    page = {"offers": [offer(output=o) for o in (300, 100, 200)] + [offer("other", 9)]}
    prices, busy = market(page, "m", TOKEN)
    assert prices is not None and (prices.output, prices.steps) == (200, 7)
    assert busy.value == 0.75 and "9 of 12" in busy.source
    assert market(page, "0xab", TOKEN)[0] is not None
    assert market({"offers": []}, "m", TOKEN) == (None, Figure(None, "no worker offers the model"))
    assert market({"offers": [offer(slots=0, free=0)]}, "m", TOKEN)[1].value is None


def test_a_price_in_another_token_is_no_price_of_this_market() -> None:
    """Its base units may be worth nothing, or a thousand times as much."""
    others = [{**offer(output=10**18), "tokens": ["0x" + "44" * 20]} for _ in range(3)]
    prices, busy = market({"offers": [*others, offer(output=200)]}, "m", TOKEN)
    assert prices is not None and prices.output == 200 and "1 workers" in prices.source
    assert busy.value == 0.75
    assert market({"offers": others}, "m", TOKEN)[0] is None


@contextmanager
def index_of(**prices: int) -> Iterator[str]:
    """An index with one worker for each of these models, at these prices."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            (asked,) = parse_qs(urlsplit(self.path).query)["model"]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"offers": [offer(asked, prices[asked])]}).encode())

        def log_message(self, *words: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_each_of_several_models_has_the_prices_of_its_own_market(tmp_path: Path) -> None:
    """The cards of one worker may run different ones."""
    deployment = Deployment(
        31337,
        parse_address(TOKEN),
        "tUSDC",
        6,
        Amount(10**8),
        Seconds(7 * 24 * 3600),
        rpc_url="http://127.0.0.1:9",
    )
    with index_of(small=200, large=900) as url:
        values = {"payout": "0x" + "f1" * 20, "indexes": (url,)}
        prepare_home(Home(tmp_path), deployment, values, "password", Timestamp(1_800_000_000))
        estimator = Estimator(tmp_path, EstimateWishes())
        made_of = [estimator.of(SPEED, name, Figure(400.0, "x")) for name in ("small", "large")]
    assert [one.prices.output for one in made_of] == [200, 900]


@pytest.mark.parametrize(
    "page",
    [
        {},
        {"offers": [{}]},
        {"offers": 3},
        {"offers": [offer(output=-1)]},
        {"offers": [offer(slots=2**99)]},
    ],
)
def test_a_page_that_is_not_one_of_an_index_is_refused(page: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="index"):
        market(page, "m", TOKEN)


def test_a_planned_speed_reads_every_weight_once_a_step_and_names_its_sources() -> None:
    card = next(card for card in CARDS if card.name == "RTX 4090")
    speed = planned_speed(card, 20 * 10**9, canvas_size=256)
    assert speed.steps == pytest.approx(50.4)
    assert speed.tokens == pytest.approx(50.4 * 256 / MEAN_STEPS)
    assert "at most" in speed.source and card.bandwidth.source in speed.source


def test_every_figure_of_every_card_names_the_page_that_says_so() -> None:
    assert len({card.name for card in CARDS}) == len(CARDS)
    for card in CARDS:
        assert 8 <= card.gigabytes.value <= 192 and 200 < card.bandwidth.value < 9000
        assert 50 <= card.watts.value <= 1200
        for figure in (card.gigabytes, card.bandwidth, card.watts):
            place = urlsplit(figure.source)
            assert place.scheme in ("http", "https") and place.hostname, card.name
            assert len(place.path) > 1, "a page, not a site"


def test_the_line_of_the_workers_own_slots_is_taken() -> None:
    lines = [
        {"rows": rows, "tokens_per_second": 10.0 * rows, "steps_per_second": rows}
        for rows in (1, 4, 8)
    ]
    assert [best_line(lines, slots).tokens for slots in (1, 5, 99)] == [10, 40, 80]  # type: ignore[union-attr]
    assert best_line([], 1) is None and best_line([{"rows": 1}], 1) is None


def test_a_model_on_the_cpu_does_not_draw_what_the_gpu_beside_it_may() -> None:
    draws = watts_here(check({"payout": "0x" + "44" * 20, "device": "cpu"}))
    assert draws.value is None and "CPU" in draws.source
