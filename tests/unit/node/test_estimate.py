"""What a worker would earn: every figure has a source, and what is unknown stays unknown."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from piecework.chain.deployment import Deployment
from piecework.commands._worker.estimate import (
    EstimateWishes,
    Estimator,
    planned,
    this_speed,
    watts_here,
)
from piecework_model.checkpoint.dimensions import RELEASED_NAME
from piecework_model.checkpoint.manifest import bundled_checkpoint_path, manifest_digest, written
from piecework_node.config import check, to_toml
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
from piecework_node.engine.benchmark_table import write_speeds
from piecework_node.home import Home
from piecework_node.pricing.market import (
    FollowedModel,
    MarketReader,
    NamedModel,
    OperatorAsk,
    WantedModel,
)
from piecework_protocol.objects import Service
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import (
    Amount,
    Digest,
    Seconds,
    Timestamp,
    Uint32,
    keccak256,
    to_hex,
)
from piecework_protocol.wire import SignedOffer
from tests.support.chain.fake_chain import DOMAIN, TOKEN, FakeChain
from tests.support.market.offers import model
from tests.support.market.pages import FOLLOWED, ME, NAMES, Pages, asks, chain_of

MONEY = ShownMoney("USDC", 6, 1.0, 0.36)
SPEED = WorkerSpeed(100.0, 10.0, "measured")
PRICES = AskedPrices(200_000, 1_000, "the market")


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


def test_the_market_is_the_median_of_what_others_ask_and_their_mean_busy_share() -> None:
    asks = [OperatorAsk(output, 7, 4, free) for output, free in ((300, 0), (100, 4), (200, 1))]
    prices, busy = market(asks)
    assert prices is not None and (prices.output, prices.steps) == (200, 7)
    assert "3 other workers" in prices.source
    assert busy.value == pytest.approx((1 + 0 + 0.75) / 3)
    assert market([]) == (None, Figure(None, "no other worker offers the model"))
    unsaid = market([OperatorAsk(5, 7, 0, 0)])
    assert unsaid[0] is not None and unsaid[1].value is None


def test_a_worker_that_claims_more_slots_than_all_others_has_one_voice() -> None:
    asks = [OperatorAsk(200, 7, 2, 2), OperatorAsk(200, 7, 2**32 - 1, 0)]
    assert market(asks)[1].value == pytest.approx(0.5)


# --- the market of a home


def deployment() -> Deployment:
    return Deployment(
        31337,
        TOKEN,
        "tUSDC",
        6,
        Amount(10**8),
        Seconds(7 * 24 * 3600),
        rpc_url="http://127.0.0.1:9",
    )


def estimator_of(
    home: Path, shown: list[SignedOffer], chain: FakeChain, **settings: str
) -> Estimator:
    """An estimator whose one index shows these offers."""
    values = {"payout": "0x" + "f1" * 20, "native_coin_price": "0", **settings}
    Home(home).config.write_text(to_toml(values))
    deployment().save(Home(home).deployment)
    source = MarketReader(["http://one"], Pages(one=shown), chain, DOMAIN, me=ME, token=TOKEN)
    return Estimator(home, EstimateWishes(), source)


def fresh(name: str, units: int, **changes: Any) -> SignedOffer:
    """An offer of this moment: a command looks at the machine's clock."""
    moment = int(time.time())
    times = {"issued_at": Timestamp(moment), "expires_at": Timestamp(moment + 300)}
    return asks(name, units, **{**times, **changes})


def prices_of(estimator: Estimator, wanted: WantedModel) -> AskedPrices:
    return estimator.of(SPEED, wanted, Figure(400.0, "x")).prices


def test_offers_that_nobody_signed_and_workers_without_a_stake_set_no_forecast(
    tmp_path: Path,
) -> None:
    """An index that lies."""
    forger = LocalSigner(bytes(keccak256(b"forger")))
    chain = chain_of("ann", "bob")
    shown = [
        fresh("ann", 5),
        fresh("bob", 10**9, signer=forger),
        *(fresh(f"stranger {n}", 10**9) for n in range(9)),
    ]
    prices = prices_of(estimator_of(tmp_path, shown, chain), FOLLOWED)
    assert prices.output == 5 and "1 other worker " in prices.source


def test_a_worker_with_two_entries_is_one_worker(tmp_path: Path) -> None:
    entries = tuple(
        model(profile=profile, price_per_million_output_tokens=Amount(units))
        for profile, units in (("gpu", 9), ("other gpu", 3))
    )
    shown = [fresh("ann", 0, models=entries), fresh("bob", 7), fresh("cai", 8)]
    prices = prices_of(estimator_of(tmp_path, shown, chain_of(*NAMES)), FOLLOWED)
    assert prices.output == 7 and "3 other workers" in prices.source


@pytest.mark.parametrize("wanted", [FOLLOWED, NamedModel("tale-1", Service.REPLAYABLE)])
def test_a_replayable_model_is_not_compared_with_best_effort(
    tmp_path: Path, wanted: WantedModel
) -> None:
    plain = model(
        service=Service.BEST_EFFORT,
        profile="a vllm server",
        price_per_million_output_tokens=Amount(1),
        price_per_thousand_steps=Amount(0),
        max_steps=Uint32(0),
    )
    both = (plain, asks("x", 8).offer.models[0])
    shown = [fresh("ann", 0, models=(plain,)), fresh("bob", 0, models=both)]
    estimator = estimator_of(tmp_path, shown, chain_of(*NAMES))
    prices = prices_of(estimator, wanted)
    assert prices.output == 8 and "1 other worker " in prices.source
    cheap = prices_of(estimator, FollowedModel(model().digest, Service.BEST_EFFORT))
    assert cheap.output == 1 and "2 other workers" in cheap.source


def test_each_of_several_models_has_the_prices_of_its_own_market(tmp_path: Path) -> None:
    """The cards of one worker may run different ones."""
    shown = [
        fresh(name, 0, models=(model(name, price_per_million_output_tokens=Amount(units)),))
        for name, units in (("small", 200), ("large", 900))
    ]
    estimator = estimator_of(tmp_path, shown, chain_of("small", "large"))
    wanted = [FollowedModel(model(name).digest, Service.REPLAYABLE) for name in ("small", "large")]
    assert [prices_of(estimator, one).output for one in wanted] == [200, 900]


def test_a_measured_model_is_known_by_its_digest(tmp_path: Path) -> None:
    line = {"rows": 1, "tokens_per_second": 10.0, "steps_per_second": 2.0}
    report = {"model": "any name", "digest": to_hex(FOLLOWED.digest), "measurements": [line]}
    write_speeds(Home(tmp_path), report)
    speed, wanted = this_speed(estimator_of(tmp_path, [], chain_of()))
    assert speed.tokens == 10 and wanted == FOLLOWED


def test_a_planned_model_is_known_by_its_manifest_and_without_one_by_its_name(
    tmp_path: Path,
) -> None:
    card = next(card for card in CARDS if card.name == "H100 SXM")
    folder = bundled_checkpoint_path()
    digest = Digest(manifest_digest(written(folder)))
    released = planned(card, estimator_of(tmp_path, [], chain_of()))
    bundled = planned(card, estimator_of(tmp_path, [], chain_of(), model=str(folder)))
    assert released[1] == NamedModel(RELEASED_NAME, Service.REPLAYABLE)
    assert bundled[1] == FollowedModel(digest, Service.REPLAYABLE)


@pytest.mark.parametrize(
    ("shown", "away", "why"),
    [
        ([], False, "no other worker offers the model"),
        (b"{}", False, "one: the index does not answer with a list of offers"),
        ([asks("ann", 5)], True, "the chain does not answer"),
    ],
)
def test_without_a_market_the_owners_own_prices_count_and_the_line_says_why(
    tmp_path: Path, shown: Any, away: bool, why: str
) -> None:
    chain = chain_of(*NAMES)
    chain.away = away
    made = estimator_of(tmp_path, shown, chain).of(SPEED, FOLLOWED, Figure(1.0, "x"))
    assert made.prices.output == 200_000 and "your own prices" in made.prices.source
    assert why in made.prices.source and made.utilization.value == ASSUMED_UTILIZATION


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
