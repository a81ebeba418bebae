"""What the chain does to us, sorted by what can be done about it. Every message is fit for a
person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from piecework.base.errors import PieceworkError
from piecework.base.text import one_line
from piecework.chain.limits import MAX_SHOWN_CHARACTERS


class ChainError(PieceworkError):
    """The root of everything that goes wrong between us and a chain."""


class RpcUnavailable(ChainError):
    """The node did not answer, or not in time, or is overloaded. Trying again later may help."""


class RpcLimited(RpcUnavailable):
    """The node answers, and declines for now: a rate limit, a quota, a replica that lags."""


class RpcRefused(ChainError):
    """The node answered with a JSON-RPC error that has no more precise class here.

    `by_all` False: of several nodes one did not refuse. It was silent, and may have done it.
    """

    by_all = True

    def __init__(self, method: str, code: int, message: str, data: Any = None) -> None:
        why = one_line(message, MAX_SHOWN_CHARACTERS)
        super().__init__(f"the chain's node refused {method}: {why} (code {code})")
        self.method = method
        self.rpc_code = code
        self.message = message
        self.data = data


class MethodMissing(RpcRefused):
    """The node does not offer this method. Another node, or another plan, may."""


class LogRangeRefused(RpcRefused):
    """The node does not search so many blocks, or return so many events, at once."""


class NodesDisagree(ChainError):
    """Fewer nodes than the quorum say the same about money. One of them is broken or lies."""


class BadAnswer(ChainError):
    """The node answered with something that is not what the method returns. The node is broken or
    lies."""


class AnswerTooLarge(BadAnswer):
    """The node's answer has more bytes than we read. A smaller question may help."""


class NoFinality(ChainError):
    """The node does not know the "finalized" tag. Set finality to a number of blocks
    (`at_depth`)."""


class WrongChain(ChainError):
    """The node serves another chain, or other code is at the contracts' addresses. Nothing may be
    signed."""


class BadDeployment(ChainError):
    """A deployment file, or what it names, cannot be used."""


class TransactionReverted(ChainError):
    """A contract refused. `name` and `arguments` are the decoded custom error ("" when there was
    none)."""

    def __init__(self, name: str, arguments: Mapping[str, Any], data: bytes = b"") -> None:
        listed = ", ".join(f"{key}={_shown(value)}" for key, value in arguments.items())
        reason = f"{name}({listed})" if name else "no reason was given"
        super().__init__(f"the contract refused: {reason}")
        self.name = name
        self.arguments = dict(arguments)
        self.data = data
        self.reason = reason


class InsufficientGas(ChainError):
    """The sender's native balance does not cover the transaction's gas."""


class FeeTooHigh(ChainError):
    """The chain's fees are above our cap, or above what the transaction is worth. Waiting may
    help."""


class FeeTooLow(ChainError):
    """The node declines our fees (base fee rose, or a replacement bumped too little). `replace`
    helps."""


class NonceTaken(ChainError):
    """Another transaction of this key was mined with the same nonce: this one will never be."""


class NonceUnexplained(ChainError):
    """The node holds transactions of this key that are not ours: another program uses the key, or
    the node is wrong. No nonce is chosen on top of them."""


class StuckTransaction(ChainError):
    """A transaction was not mined in the time given. It may still be: look again, or replace it."""


class EarlierCallMined(ChainError):
    """The same was asked for before, its end was not seen, and it is done. Nothing was sent now.
    Ask again if it is wanted once more."""


class SignerError(ChainError):
    """A signer in another process did not sign. Nothing was sent."""


class SignerAway(SignerError):
    """The signer does not answer, or not in time. Trying again later may help."""


class SignerRefuses(SignerError):
    """The signer does not sign this. `refusal` is its stable name of the reason."""

    def __init__(self, refusal: str, why: str) -> None:
        super().__init__(f"the signer refuses ({refusal}): {why}")
        self.refusal = refusal


class SignerDiffers(SignerError):
    """The signer has another key than this home's operator, or serves another market."""


class AnvilMissing(ChainError):
    """No anvil binary was found, or it did not start."""


def _shown(value: Any) -> str:
    text = "0x" + value.hex() if isinstance(value, bytes) else str(value)
    return one_line(text, MAX_SHOWN_CHARACTERS)
