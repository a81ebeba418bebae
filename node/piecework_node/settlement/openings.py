"""Which authorizations the worker submits for a payer, and which the payer submits itself.

An opening that reverts costs the worker its gas. So one is simulated before its job is accepted,
its fee must cover the gas, and a payer whose opening reverted sends its own until it has put in
more. Such a deposit costs the payer about as much gas as the next revert could cost us.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from piecework.chain.errors import ChainError
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import MetaSet, OneStepFunding
from piecework_node.runtime.channels import Channels
from piecework_node.runtime.live import LiveChannel
from piecework_node.settlement.fees import Errand, FeeSchedule
from piecework_node.settlement.simulations import OpeningSimulations
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Address

RETRY_S: Final = 5.0
_KEY: Final = "opens_itself/"
"""Of a payer whose opening reverted. The value is what its channels held then, in base units."""
_ENDED: Final = ""
"""The value once the payer has put in more."""


class Openings:
    """The rules for openings and top-ups of one worker."""

    def __init__(
        self,
        journal: Journal,
        channels: Channels,
        simulations: OpeningSimulations,
        fees: FeeSchedule,
    ) -> None:
        self._journal, self._channels = journal, channels
        self._simulations, self.fees = simulations, fees

    async def check(
        self, live: LiveChannel, funding: FundingAuthorization, *, taken: bool = False
    ) -> None:
        """Check that the worker would submit an authorization that is not carried out yet.

        taken: it was checked before, and may be under way. Then only its payer is looked at, whose
        opening may have reverted since.

        Raises:
            Refusal: FUND_YOURSELF: the payer has to send it. UNDERFUNDED: it raises too little.
                CHAIN_UNAVAILABLE: the node does not say.
        """
        terms, deposit = funding.authorization, live.stored.deposit
        if terms.funded <= deposit:
            return
        await self._check_payer(terms.channel.payer)
        if taken:
            return
        if deposit and isinstance(funding, OneStepFunding):
            raise Refusal(
                Reason.FUND_YOURSELF, "an opening in one step opens a channel and raises none"
            )
        least = self.fees.settings.min_top_up if deposit else 0
        if terms.funded - deposit < least:
            raise Refusal(
                Reason.UNDERFUNDED,
                f"a top-up must be {least} base units or more",
                metadata={"min_top_up": str(least)},
            )
        errand = Errand.TOP_UP if deposit else Errand.OPEN
        if not self.fees.covers(errand, terms.fee):
            asked = self.fees.asked()
            fee = asked.top_up if deposit else asked.open
            raise Refusal(
                Reason.FUND_YOURSELF,
                f"the fee of {terms.fee} base units does not cover the gas. Offer the fee of "
                f"{fee} that is asked now, or send the transaction yourself",
                metadata={"fee": str(fee)},
            )
        await self._simulate(funding)

    async def _check_payer(self, payer: Address) -> None:
        if await self.must_open_itself(payer):
            raise Refusal(
                Reason.FUND_YOURSELF,
                "an opening of this payer reverted. Send the next one yourself",
            )

    async def must_open_itself(self, payer: Address) -> bool:
        """Whether an opening of this payer reverted, and no deposit of it is final since."""
        held = await self._journal.meta(_KEY + payer.hex())
        if held is None or held == _ENDED:
            return False
        if sum(live.final for live in self._unclosed(payer)) <= int(held):
            return True
        await self._journal.append([MetaSet(_KEY + payer.hex(), _ENDED)])
        return False

    async def reverted(self, payer: Address) -> None:
        """Remember that an opening of this payer cost gas and brought nothing."""
        held = sum(live.stored.deposit for live in self._unclosed(payer))
        await self._journal.append([MetaSet(_KEY + payer.hex(), str(held))])

    def _unclosed(self, payer: Address) -> Iterator[LiveChannel]:
        return (
            live
            for live in self._channels
            if live.stored.channel.payer == payer and live.stored.state is not ChannelState.CLOSED
        )

    async def _simulate(self, funding: FundingAuthorization) -> None:
        try:
            would = await self._simulations.would_open(funding)
        except ChainError as error:
            raise Refusal(
                Reason.CHAIN_UNAVAILABLE,
                f"the chain does not say whether the channel can be opened: {error}",
                retry_after_s=RETRY_S,
            ) from None
        if not would:
            raise Refusal(
                Reason.FUND_YOURSELF, "the chain would refuse the authorization as it stands now"
            )
