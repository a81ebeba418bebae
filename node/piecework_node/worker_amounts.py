"""The amounts of the worker's settings in base units of the market's token, and what fits them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from piecework.base.amounts import Token
from piecework.base.errors import SettingsError
from piecework.base.settings import Settings
from piecework.base.written_amounts import base_units, known_units
from piecework_protocol.credit import FIRST_PROMPT_TOKENS, CreditTerms, least_first
from piecework_protocol.limits import MAX_CHANNEL_AMOUNT
from piecework_protocol.types import Amount

STRANGERS: Final = 8
"""How many of them may owe all that one of them may."""
FIRST_CANVAS_TOKENS: Final = 256
FIRST_STEPS: Final = 48
"""A full canvas of the published model. The start holds credit_first to the model that runs."""
CREDIT_FROM_PRICES: Final = ("credit_first", "credit_mined", "credit_max")
"""Settings that follow the prices unless they are set."""


@dataclass(frozen=True, slots=True)
class WorkerAmounts:
    """The amounts of the settings in base units. Fees that are None follow the gas price.

    `credit` follows the prices where it is not set. `price_per_thousand_steps` is 0 for a backend
    that counts no steps (clause 3.10).
    """

    price_per_million_prompt_tokens: Amount
    price_per_million_output_tokens: Amount
    price_per_thousand_steps: Amount
    min_deposit: Amount
    credit: CreditTerms
    open_fee: Amount | None
    top_up_fee: Amount | None
    close_fee: Amount | None
    min_top_up: Amount
    native_coin_price: Amount

    @property
    def least_first_credit(self) -> int:
        """The least credit_first with which anybody new can begin a job at these prices."""
        return least_first(
            self.price_per_million_prompt_tokens,
            self.price_per_million_output_tokens,
            self.price_per_thousand_steps,
            canvas_size=FIRST_CANVAS_TOKENS,
            max_steps=FIRST_STEPS,
        )


def amounts_of(config: Settings, token: Token, *, counts_steps: bool) -> WorkerAmounts:
    """Return the amounts of a worker's settings. counts_steps: its engine does.

    Raises:
        SettingsError: an amount has no unit or is out of bounds, or credit and fees do not fit
            the prices.
    """

    def known(name: str) -> Amount:
        return Amount(known_units(config, name, token, MAX_CHANNEL_AMOUNT))

    def given(name: str) -> Amount | None:
        units = base_units(config, name, token, MAX_CHANNEL_AMOUNT)
        return None if units is None else Amount(units)

    no_credit = CreditTerms(Amount(0), Amount(0), Amount(0), Amount(0))
    amounts = WorkerAmounts(
        price_per_million_prompt_tokens=known("price_per_million_prompt_tokens"),
        price_per_million_output_tokens=known("price_per_million_output_tokens"),
        price_per_thousand_steps=known("price_per_thousand_steps") if counts_steps else Amount(0),
        min_deposit=known("min_deposit"),
        credit=no_credit,
        open_fee=given("open_fee"),
        top_up_fee=given("top_up_fee"),
        close_fee=given("close_fee"),
        min_top_up=known("min_top_up"),
        native_coin_price=known("native_coin_price"),
    )
    levels, least = [], amounts.least_first_credit
    for name in CREDIT_FROM_PRICES:
        level = known(name)
        # Each is at least the one before it, unless somebody has set it.
        least = level if name in config.model_fields_set else max(level, least)
        levels.append(Amount(least))
    strangers = known("stranger_credit") or Amount(STRANGERS * levels[0])
    _check_credit(amounts, levels, strangers, token)
    return replace(amounts, credit=CreditTerms(levels[0], levels[1], levels[2], strangers))


def _check_credit(
    amounts: WorkerAmounts, levels: Sequence[Amount], strangers: Amount, token: Token
) -> None:
    """Refuse credit that goes down, or with which nobody new could begin at these prices."""
    least, first = amounts.least_first_credit, token.format(levels[0])
    if levels[0] < least:
        raise SettingsError(
            f'credit_first must be "{token.write(least)}" or more at these prices. A new client '
            f"could not begin a prompt of {FIRST_PROMPT_TOKENS} tokens and one canvas"
        )
    if list(levels) != sorted(levels):
        raise SettingsError(f"credit_first ({first}), credit_mined and credit_max must not go down")
    if strangers < levels[0]:
        raise SettingsError(f"stranger_credit must be credit_first ({first}) or more")
    if amounts.open_fee is not None and amounts.open_fee < levels[0]:
        raise SettingsError(
            f"open_fee is less than credit_first ({first}): an opening that never comes would cost "
            "more than it brings"
        )
