"""What an offer asks for transactions that the worker sends for a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from piecework_protocol.types import Amount


@dataclass(frozen=True, slots=True)
class OfferedFees:
    """Fees in base units of the token, as an offer states them.

    `min_top_up` is not a fee. It is the least raise of a channel that is worth a transaction.
    """

    open: Amount = Amount(0)
    top_up: Amount = Amount(0)
    close: Amount = Amount(0)
    min_top_up: Amount = Amount(0)


NO_FEES: Final = OfferedFees()
