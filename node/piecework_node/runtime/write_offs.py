"""Debts whose openings never came: after some time they no longer keep new payers out.

Payers without a mined deposit have one bound together (clause 3.7), and a debt never expires. So
thieves that let no opening be mined could fill it for good. Once in `every_s` the debts that are
that old leave the bound of the strangers. They stay owed. Their payers have no credit from then on
until a deposit of theirs is mined. A key that signed for one of them may sign for others: a gateway
for many people does.

A payer that has promised all that it owes, out of an opening that the worker is still to send, has
done its part. Its debt stays in the bound until its authorization expires or the opening fails.

The mark goes once a deposit of the payer is final and no debt of it is left on an opening. It has
then put more at stake than a new key, which costs nothing and has no mark.

A round writes off no more than all strangers may owe. That is the rate: `stranger_credit` each
`every_s`. Ages and rounds count from the start of the process, so that a restart delays a round and
never adds one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import MetaSet
from piecework_node.runtime.channels import Channels
from piecework_node.runtime.funding import usable_funding
from piecework_node.runtime.jobs import JobRuntime
from piecework_node.runtime.live import LiveChannel
from piecework_node.times import now
from piecework_protocol.types import Address, ChannelId

_KEY: Final = "written_off/"
"""Of an address. The value is what its payer owed then, in base units. Empty: that is over."""


async def written_off(journal: Journal) -> set[Address]:
    """Return the payers that left strangers' debts and have no final deposit since.

    As the journal holds them.
    """
    marks = await journal.metas(_KEY)
    return {Address(bytes.fromhex(key.removeprefix(_KEY))) for key, owed in marks.items() if owed}


class WriteOffs:
    """The rounds of one worker."""

    def __init__(
        self, runtime: JobRuntime, channels: Channels, *, every_s: float, log: Any
    ) -> None:
        """every_s: age of a debt, and the least time between two rounds."""
        self._runtime, self._channels = runtime, channels
        self._every_s, self._log = every_s, log
        self._round_at = runtime.clock.monotonic()

    @property
    def due(self) -> tuple[ChannelId, ...]:
        """The channels whose debts are old enough, if it is time for a round.

        Ask the chain about them before you carry it out. A payer may have opened its channel.
        """
        moment = self._runtime.clock.monotonic()
        if moment - self._round_at < self._every_s:
            return ()
        old = (live for live in self._channels if moment - live.since >= self._every_s)
        return tuple(live.id for live in self._owing(old))

    async def carry_out(self, due: Iterable[ChannelId]) -> None:
        """Write off what the payers of these channels still owe without a deposit."""
        credit, held = self._runtime.credit, map(self._channels.get, due)
        if credit is None:
            return
        self._round_at = self._runtime.clock.monotonic()
        accounts = credit.accounts()
        owing = self._owing(live for live in held if live is not None)
        payers = {live.stored.channel.payer for live in owing}
        if payers:
            marks = [MetaSet(_KEY + payer.hex(), str(accounts[payer].owed)) for payer in payers]
            await self._runtime.journal.append(marks)
            credit.write_off(payers)
            self._log.warning("debts of strangers were written off", count=len(payers))

    async def forgive(self) -> None:
        """Take the mark off the payers whose deposit is final."""
        credit = self._runtime.credit
        redeemed = credit.redeemed if credit is not None else []
        if credit is not None and redeemed:
            await self._runtime.journal.append([MetaSet(_KEY + p.hex(), "") for p in redeemed])
            credit.forgive(redeemed)
            self._log.info("strangers with a debt have a final deposit now", count=len(redeemed))

    def _owing(self, channels: Iterable[LiveChannel]) -> list[LiveChannel]:
        """Those of the channels whose payers owe something on openings, without a deposit."""
        credit = self._runtime.credit
        accounts = credit.accounts() if credit is not None else {}
        debtors = {p for p, a in accounts.items() if a.is_stranger and a.on_openings}
        return [
            live
            for live in channels
            if live.stored.channel.payer in debtors
            and live.credit.owed
            and not self._is_ours_to_open(live)
        ]

    def _is_ours_to_open(self, live: LiveChannel) -> bool:
        """Whether vouchers promise all that is owed, out of an opening that we are to send."""
        funding = usable_funding(live.stored.funding, now(self._runtime.clock))
        if funding is None or not live.wants_funding:
            return False
        promised = min(live.ledger.cumulative, funding.authorization.funded)
        return live.charged + sum(job.held for job in live.jobs.values()) <= promised
