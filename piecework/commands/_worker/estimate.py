"""What `piecework worker estimate`, `models plan` and `bench` say about earnings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from piecework.commands import _common as common
from piecework.commands._worker.views import price_rows, running_prices

HOST_GIB = 64
CONTEXT = 8192

if TYPE_CHECKING:
    from piecework.base.amounts import Token
    from piecework_node.config import WorkerConfig
    from piecework_node.console.cards import Card
    from piecework_node.console.estimate import AskedPrices, Estimate, Figure, WorkerSpeed
    from piecework_node.console.model import ShownMoney
    from piecework_node.pricing.market import SeenOffers, WantedModel
    from piecework_protocol.types import Digest, Timestamp


class MarketSource(Protocol):
    """A way to see what others ask (`piecework_node.pricing.market.MarketReader`)."""

    async def offers(self, model: WantedModel, now: Timestamp) -> SeenOffers:
        """Return verified offers.

        Raises:
            ChainError: the registry does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class EstimateWishes:
    """What the caller says itself. None: as the settings, or as the market."""

    usd_per_token: float | None = None
    usd_per_kwh: float | None = None
    utilization: float | None = None
    watts: float | None = None


class Estimator:
    """The market and the settings of one home, asked once for any number of speeds."""

    def __init__(
        self, root: Path, wishes: EstimateWishes, source: MarketSource | None = None
    ) -> None:
        """source: None for the indexes of the home, with its chain."""
        from piecework_node import config
        from piecework_node.home import Home

        self.home, self._wishes, self._source = Home(root), wishes, source
        self.config: WorkerConfig = common.guard(lambda: config.load(root))
        self.token: Token = common.market_token(self.home.deployment)
        self._markets: dict[WantedModel, tuple[AskedPrices, Figure]] = {}
        """Cards may run different models."""
        self._gas: Figure | None = None

    def of(self, speed: WorkerSpeed, model: WantedModel, watts: Figure) -> Estimate:
        """What a speed would earn with a model. `watts`: of the busy card."""
        from piecework_node.console.estimate import Figure, estimate

        wishes = self._wishes
        if model not in self._markets:
            self._markets[model] = common.run(self._ask_market(model))
        if self._gas is None:
            self._gas = common.run(self._ask_gas())
        prices, busy = self._markets[model]
        if wishes.utilization is not None:
            busy = Figure(wishes.utilization, "as you say")
        if wishes.watts is not None:
            watts = Figure(wishes.watts, "as you say")
        return estimate(speed, prices, busy, watts=watts, money=self.money, gas_a_day=self._gas)

    @property
    def money(self) -> ShownMoney:
        """How amounts are shown: the settings, or what the caller says."""
        from piecework_node.console.model import ShownMoney

        own, token = self._wishes, self.token
        of_token = self.config.usd_per_token if own.usd_per_token is None else own.usd_per_token
        of_power = self.config.usd_per_kwh if own.usd_per_kwh is None else own.usd_per_kwh
        return ShownMoney(token.symbol, token.decimals, of_token or None, of_power or None)

    async def _ask_market(self, model: WantedModel) -> tuple[AskedPrices, Figure]:
        """What other workers ask, or the home's own prices."""
        from piecework.base.errors import PieceworkError
        from piecework_node.console.estimate import AskedPrices, Figure, market
        from piecework_node.pricing.market import SeenOffers, ask_of

        seen, why = SeenOffers((), (), ()), ""
        try:
            seen = await self._look(model)
        except (PieceworkError, OSError) as error:
            why = f"nobody says whose offers count: {error}"
        prices, busy = market([ask_of(offer, model) for offer in seen.offers])
        if prices is not None:
            return prices, busy
        if not why and not seen.answered:
            why = "; ".join(seen.away) or "no index is set"
        why = why or busy.source
        own = f"your own prices, because {why}"
        amounts = self.config.amounts(self.token)
        output, steps = amounts.price_per_million_output_tokens, amounts.price_per_thousand_steps
        return AskedPrices(output, steps, own), Figure(None, why)

    async def _look(self, model: WantedModel) -> SeenOffers:
        """The offers of others that automatic prices would believe."""
        from piecework.base.clock import SystemClock
        from piecework.base.http import HttpReader
        from piecework.chain.deployment import Deployment
        from piecework_node.daemon.assembly import connect
        from piecework_node.keys.operator import keystore_address
        from piecework_node.pricing.market import MARKET_LIMITS, MarketReader, SeenOffers
        from piecework_node.times import now
        from piecework_protocol.types import parse_address

        moment = now(SystemClock())
        if self._source is not None:
            return await self._source.offers(model, moment)
        if not self.config.indexes:
            return SeenOffers((), (), ())
        deployment = Deployment.load(self.home.deployment)
        me = parse_address("0x" + keystore_address(self.home.operator))
        reader = await connect(self.config, deployment)
        try:
            async with HttpReader(MARKET_LIMITS) as http:
                source = MarketReader(
                    *(self.config.indexes, http, reader, deployment.domain),
                    me=me,
                    token=deployment.token,
                )
                return await source.offers(model, moment)
        finally:
            await reader.close()

    async def _ask_gas(self) -> Figure:
        """What settlements cost in a day at the gas price of now, in base units."""
        from piecework.base.errors import PieceworkError
        from piecework.chain.deployment import Deployment
        from piecework.chain.sending.fees import FeePolicy
        from piecework.chain.sending.l1_fees import L1Fees
        from piecework.chain.sending.transactions import gas_price_of
        from piecework_node.console.estimate import DAY_S, Figure
        from piecework_node.daemon.assembly import connect
        from piecework_node.settlement.policy import WEI_PER_COIN, settle_wei

        config = self.config
        try:
            reader = await connect(config, Deployment.load(self.home.deployment))
            try:
                price = await gas_price_of(reader.rpc, FeePolicy(), L1Fees(reader.rpc))
            finally:
                await reader.close()
        except (PieceworkError, OSError) as error:
            return Figure(None, f"the chain's node does not tell the gas price: {error}")
        count = DAY_S / config.settle_interval_s
        units = (
            count * settle_wei(price) * config.amounts(self.token).native_coin_price / WEI_PER_COIN
        )
        return Figure(units, f"at most {count:.0f} settlements a day at the gas price of now")


def watts_of(card: Card) -> Figure:
    """What a busy card of the table draws, by its maker's figure."""
    from piecework_node.console.estimate import Figure

    return Figure(float(card.watts.value), f"the whole board, {card.watts.source}")


def watts_here(settings: WorkerConfig) -> Figure:
    """What a card of this machine may draw, as NVML says. `settings` are those of the card."""
    from piecework_node.console.estimate import Figure
    from piecework_node.owner.nvml import power_limit

    if settings.device == "cpu":
        return Figure(None, "the model runs on the CPU, and nothing tells what that draws")
    limit, missing = power_limit(settings.gpu_number)
    if limit is None:
        return Figure(None, missing)
    return Figure(limit, "the power limit of this card, by NVML")


def this_speed(estimator: Estimator) -> tuple[WorkerSpeed, WantedModel]:
    """The speed of this machine with its model: of the running worker, or as bench measured it.

    The program ends with one line if nobody has measured it.
    """
    from piecework.base.errors import PieceworkError
    from piecework_node.console.estimate import best_line
    from piecework_node.daemon.admin import ask_daemon
    from piecework_node.engine.benchmark_table import kept_table
    from piecework_node.pricing.market import FollowedModel
    from piecework_protocol.objects import Service

    try:
        return _running(asyncio.run(ask_daemon(estimator.home.root, "GET", "/status"))["engine"])
    except (PieceworkError, KeyError, ValueError):
        pass
    digest, lines = kept_table(estimator.home)
    speed = best_line(lines, estimator.config.slots)
    try:
        # The bench measures our own engine alone.
        model = FollowedModel(_digest(digest), Service.REPLAYABLE)
    except ValueError:
        speed = None
    if speed is None:
        common.fail(
            "nobody has measured this machine. Start the worker, run `piecework bench --home …`, "
            "or give --card for a card of the table"
        )
    return speed, model


def _running(engine: dict[str, Any]) -> tuple[WorkerSpeed, WantedModel]:
    """What a running engine says of itself.

    Raises:
        KeyError: it has not started yet.
        ValueError: it is another version's.
    """
    from piecework_node.console.estimate import WorkerSpeed
    from piecework_node.pricing.market import FollowedModel
    from piecework_protocol.objects import Service

    tokens, steps = float(engine["tokens_per_second"]), float(engine["steps_per_second"])
    service = Service[str(engine["service"]).upper()]
    speed = WorkerSpeed(tokens, steps, "measured by the running worker at its start")
    return speed, FollowedModel(_digest(str(engine["digest"])), service)


def _digest(text: str) -> Digest:
    from piecework_protocol.types import DIGEST_BYTES, Digest, parse_hex

    return Digest(parse_hex(text, DIGEST_BYTES, "digest"))


def card_named(text: str) -> Card:
    """The card of the table that a person means. One line ends the program if there is none."""
    from piecework_node.console.cards import CARDS

    wanted = "".join(text.lower().split())
    found = [card for card in CARDS if wanted in "".join(card.name.lower().split())]
    exact = [card for card in found if wanted == "".join(card.name.lower().split())]
    if len(exact or found) != 1:
        common.fail(f"--card is one of: {', '.join(card.name for card in CARDS)}")
    return (exact or found)[0]


def planned(card: Card, estimator: Estimator) -> tuple[WorkerSpeed, WantedModel] | str:
    """The bound of a card's speed with the home's model, in the precision that fits it.

    A text says why there is none.
    """
    from piecework_model.checkpoint import dimensions, memory
    from piecework_model.errors import ModelError
    from piecework_node.console.estimate import planned_speed

    place = estimator.config.model
    folder = common.checkpoint(place) if place else None
    try:
        blueprint = dimensions.read(folder) if folder else dimensions.released_blueprint()
        device = memory.Device("cuda", card.name, card.memory_bytes, HOST_GIB * 2**30)
        choice = memory.choose(blueprint, device, sequences=1, context=CONTEXT)
        model = _planned_model(folder, dimensions.RELEASED_NAME)
    except ModelError as error:
        return str(error)
    if choice.need.offloaded:
        return "the weights do not fit, and nobody has measured this card with a part of them"
    size = blueprint.of.canvas
    speed = planned_speed(card, choice.need.weights_bytes, canvas_size=size)
    return speed, model


def _planned_model(folder: Path | None, released: str) -> WantedModel:
    """The model of a plan: by its manifest, else by its name. A large folder is not hashed."""
    from piecework_model.checkpoint import manifest
    from piecework_node.pricing.market import FollowedModel, NamedModel
    from piecework_protocol.objects import Service
    from piecework_protocol.types import Digest

    if folder is None or not (folder / manifest.MANIFEST_FILE).is_file():
        return NamedModel(folder.name if folder else released, Service.REPLAYABLE)
    digest = manifest.manifest_digest(manifest.written(folder))
    return FollowedModel(Digest(digest), Service.REPLAYABLE)


def by_cards(cards: Sequence[Card], estimator: Estimator) -> list[tuple[str, Estimate | str]]:
    """An estimate for each card of the table, or why there is none."""
    made: list[tuple[str, Estimate | str]] = []
    for card in cards:
        bound = planned(card, estimator)
        if isinstance(bound, str):
            made.append((card.name, bound))
        else:
            made.append((card.name, estimator.of(*bound, watts_of(card))))
    return made


def here(estimator: Estimator) -> list[tuple[str, Estimate | str]]:
    """The estimate of this machine, or of each of its cards if the settings name several."""
    if estimator.config.cards:
        return [_of_running_card(name, estimator) for name, _ in estimator.config.of_cards]
    speed, model = this_speed(estimator)
    return [("this machine", estimator.of(speed, model, watts_here(estimator.config)))]


def _of_running_card(name: str, estimator: Estimator) -> tuple[str, Estimate | str]:
    """The estimate of one card, or why there is none: its speed is that of the running worker."""
    from piecework.base.errors import PieceworkError
    from piecework_node.daemon.admin import ask_daemon

    shown = f"card {name}"
    try:
        status = asyncio.run(ask_daemon(estimator.home.root, "GET", "/status"))
        speed, model = _running({card["name"]: card["engine"] for card in status["cards"]}[name])
    except PieceworkError as error:
        return shown, str(error)
    except (KeyError, ValueError):
        return shown, "its engine does not run, and nobody else has measured this card"
    draws = watts_here(dict(estimator.config.of_cards)[name])
    return shown, estimator.of(speed, model, draws)


def show(
    made: Sequence[tuple[str, Estimate | str]], estimator: Estimator, *, as_json: bool
) -> None:
    """Print estimates by the card's name, or why there is none."""
    prices = running_prices(estimator.home.root)
    if as_json:
        rows = [
            {"card": name, "why": one} if isinstance(one, str) else {"card": name, **plain(one)}
            for name, one in made
        ]
        token = common.token_json(estimator.token)
        common.print_json({"estimates": rows, "asked": prices, "token": token})
        return
    if len(made) > 1:
        _table(made, estimator)
    else:
        for name, one in made:
            common.say(name)
            if isinstance(one, str):
                common.say(f"{'':12} {one}")
            else:
                say(one, estimator)
    if prices is not None:
        for name, text in price_rows(prices):
            common.say(f"{name:12} {text}")


def _table(made: Sequence[tuple[str, Estimate | str]], estimator: Estimator) -> None:
    """Print a line a card, and below them every source once."""
    from piecework_node.console.panels import UNKNOWN

    token, sources = estimator.token, dict[str, None]()

    def amount(units: float | None) -> str:
        return UNKNOWN if units is None else token.number(int(units))

    common.say(f"{'card':18} {'tokens/s':>9} {'gross':>13} {'power':>13} {'gas':>13} {'net':>13}")
    for name, one in made:
        if isinstance(one, str):
            common.say(f"{name:18} {one}")
            continue
        figures = (one.gross, one.power.value, one.gas.value, one.net)
        amounts = " ".join(f"{amount(figure):>13}" for figure in figures)
        common.say(f"{name:18} {one.speed.tokens:>9,.0f} {amounts}")
        share = one.utilization
        sources |= dict.fromkeys(
            (
                f"prices: {one.prices.source}",
                f"utilisation: {100 * (share.value or 0):.0f} %, {share.source}",
                f"gas: {one.gas.source}",
                f"speed of {name}: {one.speed.source}",
                f"power of {name}: {one.watts.source}; {one.power.source}",
            )
        )
    common.say(
        f"A day in {token.symbol}, without prompt tokens and fees. Net is after power and gas."
    )
    for source in sources:
        common.say(f"  {source}")


def plain(made: Estimate) -> dict[str, Any]:
    """An estimate as plain values. Amounts are base units of the token."""
    return {**asdict(made), "net": made.net}


def say(made: Estimate, estimator: Estimator) -> None:
    """Print an estimate, each figure with its source."""
    from piecework_node.console.estimate import MONTH_DAYS
    from piecework_node.console.panels import UNKNOWN, dollars

    token, money = estimator.token, estimator.money

    def amount(units: float | None) -> str:
        if units is None:
            return UNKNOWN
        usd = dollars(money, int(units))
        return token.format(int(units)) + (f" (${usd})" if usd != UNKNOWN else "")

    prices, share = made.prices, made.utilization.value or 0.0
    net = made.net
    asked = f"{token.format(prices.output)} a million tokens"
    asked += f", {token.format(prices.steps)} a thousand steps"
    rows = (
        ("speed", f"{made.speed.tokens:,.0f} tokens/s", made.speed.source),
        ("prices", asked, prices.source),
        ("utilisation", f"{100 * share:.0f} %", made.utilization.source),
        ("gross a day", amount(made.gross), "without prompt tokens and fees"),
        ("power a day", amount(made.power.value), made.power.source),
        ("gas a day", amount(made.gas.value), made.gas.source),
        ("net a day", amount(net), "after power and gas"),
        ("net a month", amount(None if net is None else MONTH_DAYS * net), f"{MONTH_DAYS} days"),
    )
    for name, value, source in rows:
        common.say(f"{name:12} {value}")
        common.say(f"{'':12}   {source}")
