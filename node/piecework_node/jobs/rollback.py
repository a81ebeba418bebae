"""Whether the journal is as new as what this worker has signed.

A restored journal does not know the jobs, receipts and vouchers that came after it. The indexes do
know the last offer, and its signature is our own. So they need not be trusted. A signer in another
process knows the number of the last offer too, and no index has to answer for that.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from piecework.base.http import HttpError
from piecework.chain.errors import SignerError
from piecework.signer.remote import RemoteSigner, SignerState
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import ROLLED_BACK, MetaSet
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.offers import OfferRejected, offer_signer
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import Address, to_hex
from piecework_protocol.wire import SignedOffer, decode_offer


class JsonReader(Protocol):
    """A way to read JSON (`piecework.base.http.HttpReader`)."""

    async def get_json(self, url: str, *, headers: Mapping[str, str] | None = None) -> Any:
        """Return the value.

        Raises:
            HttpError: there is none.
        """
        ...


@dataclass(frozen=True, slots=True)
class LastOffer:
    """The highest number of an offer of ours that somebody knows."""

    sequence: int
    source: str
    """Who says so, for a person."""
    signed: SignedOffer | None = None
    """The offer itself."""


async def last_offer(
    indexes: Sequence[str], operator: Address, domain: Domain, reader: JsonReader
) -> LastOffer | None:
    """Ask every index for the last offer that this operator signed. None: nobody shows one."""
    found = await asyncio.gather(*(_ask(url, operator, domain, reader) for url in indexes))
    shown = [offer for offer in found if offer is not None]
    return max(shown, key=lambda offer: offer.sequence, default=None)


async def _ask(
    index: str, operator: Address, domain: Domain, reader: JsonReader
) -> LastOffer | None:
    url = f"{index.rstrip('/')}/v1/offers/{to_hex(operator)}"
    try:
        answer = await reader.get_json(url)
        signed = decode_offer(base64.b64decode(answer["signed_offer"], validate=True))
        if offer_signer(domain, signed) != operator or signed.offer.operator != operator:
            return None
    except (
        HttpError,
        MalformedInput,
        OfferRejected,
        binascii.Error,
        KeyError,
        TypeError,
        ValueError,
    ):
        return None  # an index that is away, or that has nothing of ours to show
    host = urlsplit(index).hostname or "?"
    return LastOffer(signed.offer.sequence, f"the index at {host}", signed)


async def signers_word(signer: AsyncSigner) -> LastOffer | None:
    """Ask a signer in another process what it has signed last. None: it is away, or there is none.

    One that comes back later refuses an offer with an old number.
    """
    if not isinstance(signer, RemoteSigner):
        return None
    try:
        state = await signer.state()
    except SignerError:
        return None
    return signed_last(state)


def signed_last(state: SignerState) -> LastOffer:
    """Give what a signer in another process has signed last.

    The very last number does not count. A worker that was killed may not have written it down.
    """
    return LastOffer(state.last_offer - 1, "the signer")


def later(one: LastOffer | None, other: LastOffer | None) -> LastOffer | None:
    """Return the one with the higher number."""
    found = [offer for offer in (one, other) if offer is not None]
    return max(found, key=lambda offer: offer.sequence, default=None)


async def notice(journal: Journal, last: LastOffer | None) -> str | None:
    """Return why the journal cannot be relied on, or None. What was noticed stays noticed."""
    known = await journal.meta(ROLLED_BACK)
    if known:
        return known
    newest = await journal.last_sequence()
    if last is None or last.sequence <= newest:
        return None
    why = (
        f"{last.source} shows offer {last.sequence} with our signature, "
        f"and the journal ends at offer {newest}"
    )
    await journal.append([MetaSet(ROLLED_BACK, why)])
    return why
