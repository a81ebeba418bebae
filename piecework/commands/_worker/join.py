"""`piecework worker join URL`: from a market's descriptor to a worker that runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework.commands import _common as common
from piecework.commands import _descriptor

if TYPE_CHECKING:
    from piecework.base.amounts import Token
    from piecework.chain.descriptor import MarketDescriptor
    from piecework_node.home import Home
    from piecework_node.operations.joining import PriceSuggestion

MAX_INDEX_ANSWER_BYTES = 8 * 1024 * 1024
PRICES = (
    "price_per_million_prompt_tokens",
    "price_per_million_output_tokens",
    "price_per_thousand_steps",
)
"""Settings, in the order of `Wishes.prices`."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says. None and "": nothing.

    Attributes:
        settings: By name, only those that were given.
        prices: Tokens for prompt, output and steps, as written.
    """

    settings: dict[str, Any]
    prices: tuple[str, str, str]
    fingerprint: str | None
    stake: str
    owner: str | None
    faucet: bool


def accept(home: Home, url: str, fingerprint: str | None) -> MarketDescriptor:
    """Fetch a market's descriptor, and hold it to the pinned one or let a person accept it."""
    from piecework.chain.descriptor import PinnedMarket
    from piecework_node.operations import joining
    from piecework_protocol.types import address_hex

    wanted = None if fingerprint is None else common.address("--fingerprint", fingerprint)
    found, signer = common.run(_descriptor.fetch(url))
    if wanted is not None and signer != wanted:
        common.fail(f"the descriptor is signed by {address_hex(signer)}, not by --fingerprint")
    before = common.guard(lambda: joining.pinned(home))
    if before is None:
        _descriptor.say_market(found, signer)
        if wanted is None:
            _confirm(address_hex(signer))
    else:
        known = before
        common.guard(lambda: known.check_successor(found, signer))
        for line in common.guard(lambda: joining.follow(home, known.descriptor, found)):
            common.say(line)
    common.guard(lambda: joining.pin(home, PinnedMarket(url, signer, found)))
    return found


def _confirm(fingerprint: str) -> None:
    if not sys.stdin.isatty():
        common.fail(f"is {fingerprint} the market's key? Then give it as --fingerprint", 2)
    common.say("Compare the address behind 'signed by' with what the market publishes elsewhere.")
    if not common.agrees("Is it the same?"):
        common.fail("not joined")


def settings_for(
    home: Home, market: MarketDescriptor, wishes: Wishes, prices: dict[str, str]
) -> dict[str, Any]:
    """The settings of a new home: what was given, then the descriptor, then a suggestion."""
    from piecework_node.config import MAX_RELAYS
    from piecework_node.operations.joining import MARKED_USD

    given = {**wishes.settings, **prices}
    values: dict[str, Any] = {"indexes": market.indexes, "relays": market.relays[:MAX_RELAYS]}
    values |= given
    if home.config.is_file():
        return values
    if market.deployment.rpc_url is None and "rpc_url" not in given:
        values["rpc_url"] = common.ask("--rpc-url", "URL of your node of this chain")
    if "payout" not in given:
        values["payout"] = common.ask("--payout", "Cold address for the earnings")
    if values["relays"] and not ("bind" in given or "endpoint" in given):
        values["bind"] = ""
    if market.token_is_usd and "usd_per_token" not in given:
        values["usd_per_token"] = MARKED_USD
        common.say(
            f"dollars: 1 {market.deployment.payment_token.symbol} is 1 USD, says the market. "
            "Change that with piecework worker set usd_per_token"
        )
    return _suggested(market, values.get("rpc_url"), prices) | values


def given_prices(market: MarketDescriptor, wishes: Wishes) -> dict[str, str]:
    """The prices of the command line with their unit, by setting."""
    token = market.deployment.payment_token
    return {
        name: common.written(token, text)
        for name, text in zip(PRICES, wishes.prices, strict=True)
        if text
    }


def suggested_prices(token: Token, found: PriceSuggestion) -> dict[str, str]:
    """A suggestion as settings have it, by setting."""
    amounts = (found.prompt, found.output, found.steps)
    return dict(zip(PRICES, map(token.write, amounts), strict=True))


def _suggested(market: MarketDescriptor, rpc: str | None, given: dict[str, str]) -> dict[str, Any]:
    """Prices that were not given, with their reason. None: the defaults of the settings."""
    if len(given) == len(PRICES):
        return {}
    found = common.run(_suggestion(market, rpc))
    if found is None:
        common.say("prices: the defaults, because no index of this market shows a bonded worker")
        return {}
    suggested = suggested_prices(market.deployment.payment_token, found) | given
    prompt, output, steps = (suggested[name] for name in PRICES)
    common.say(
        f"prices: {prompt} a million prompt tokens, {output} a million output tokens, "
        f"{steps} a thousand steps: {found.why}. Change them with piecework worker set"
    )
    return suggested


async def _suggestion(market: MarketDescriptor, rpc: str | None) -> PriceSuggestion | None:
    from piecework.base.clock import SystemClock
    from piecework.base.http import HttpLimits, HttpReader
    from piecework.chain.reading.reader import ChainReader
    from piecework_node.operations.joining import suggest_prices

    limits = HttpLimits(total_s=10.0, connect_s=5.0, max_bytes=MAX_INDEX_ANSWER_BYTES)
    async with (
        await ChainReader.connect(market.deployment, rpc_url=rpc) as reader,
        HttpReader(limits) as http,
    ):
        return await suggest_prices(
            market.indexes, http, reader, SystemClock(), token=market.deployment.token
        )


def join(
    home: Home, url: str, wishes: Wishes, password_file: Path | None, flags: dict[str, str]
) -> tuple[dict[str, Any], str]:
    """Accept the market, make the home, and register.

    Args:
        home: One that may be there.
        url: Of the market's descriptor.
        wishes: What the command line says.
        password_file: With the password of the key. None: it is asked for.
        flags: How a person writes settings.

    Returns:
        What was done, as `init` does, and the password.
    """
    import tempfile

    from piecework_node.operations.setup import NewStake, set_up_worker

    market = accept(home, url, wishes.fingerprint)
    prices = given_prices(market, wishes)
    values = settings_for(home, market, wishes, prices)
    secret = common.password(password_file, confirm=not home.operator.is_file())
    token = market.deployment.payment_token
    staked = common.units(token, wishes.stake) if wishes.stake else None
    heir = None if wishes.owner is None else common.address("--owner", wishes.owner)
    if market.faucet is not None:
        common.say(f"test tokens and coins: {market.faucet}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "deployment.json"
        market.deployment.save(file)
        done = common.run(
            set_up_worker(
                home,
                file,
                values,
                secret,
                NewStake(staked, heir, wishes.faucet, ask_about),
                asked=frozenset(wishes.settings) | frozenset(prices),
                flags=flags,
            )
        )
    return done, secret


def ask_about(doubt: str) -> None:
    """Say what may go wrong with a stake before it is sent, and ask where a person is there."""
    common.say(f"warning: {doubt}", err=True)
    if sys.stdin.isatty() and not common.agrees("Register all the same?"):
        common.fail("not registered")
