"""Settlement in the cheapest form: rows of one worker packed, the rest as plain claims. Pure.

A packed row is 192 bytes: payer 20, authorizer 20, salt 32, cumulative 16, count 8, receipts root
32, r 32, vs 32 (EIP-2098). The four terms that all rows share are sent once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from piecework.chain.contracts.abi import interface
from piecework.chain.contracts.calls import Call, Claim, settle
from piecework.chain.deployment import Deployment
from piecework.chain.limits import MAX_CLAIMS_PER_SETTLE
from piecework_protocol.errors import invariant
from piecework_protocol.types import Address, Seconds, Signature

ROW_BYTES: Final = 192
PLAIN_ROW_BYTES: Final = 512
FIXED_BYTES: Final = 416
"""Of a settlement's call data and its transaction, beside its rows. A test holds them."""


class Gas(NamedTuple):
    """What a settlement uses: a fixed part and a part for each row."""

    fixed: int
    row: int

    def of(self, rows: int) -> int:
        """Gas of so many rows; 0 for none, since nothing is sent then."""
        return self.fixed + self.row * rows if rows else 0


# Measured with a plain token and channels that were settled before; a test holds them.
PACKED_GAS: Final = Gas(40_950, 14_990)
PLAIN_GAS: Final = Gas(39_000, 19_730)
# What a token behind a proxy and a first payment to a receiver cost more.
_MARGIN: Final = 60_000


class Terms(NamedTuple):
    """What the rows of a packed settlement have in common."""

    receiver: Address
    operator: Address
    token: Address
    withdrawal_delay: Seconds


def terms_of(claim: Claim) -> Terms:
    """The terms that a claim's row must share with the others."""
    c = claim.channel
    return Terms(c.receiver, c.operator, c.token, c.withdrawal_delay)


def pack(claim: Claim) -> bytes:
    """One row."""
    c, v = claim.channel, claim.voucher
    numbers = v.cumulative.to_bytes(16, "big") + v.count.to_bytes(8, "big")
    return c.payer + c.authorizer + c.salt + numbers + v.receipts_root + _compact(claim.signature)


def settle_packed(deployment: Deployment, claims: Sequence[Claim]) -> Call:
    """Claim 1 to MAX_CLAIMS_PER_SETTLE vouchers of one worker's terms in one transaction."""
    _require_batch(claims)
    terms = terms_of(claims[0])
    invariant(all(terms_of(claim) == terms for claim in claims), "packed rows have other terms")
    rows = b"".join(pack(claim) for claim in claims)
    data = interface("Escrow").encode("settlePacked", (tuple(terms), rows))
    gas = PACKED_GAS.of(len(claims)) * 5 // 4 + _MARGIN
    return Call("settlePacked", deployment.escrow, data, gas)


def settlement_calldata(deployment: Deployment, claims: Sequence[Claim]) -> Call:
    """Settle a batch with the least gas: packed if all claims share their terms, else plain.

    `settlement_batches` makes batches that pack well.
    """
    _require_batch(claims)
    if _can_pack(claims) and PACKED_GAS.of(len(claims)) < PLAIN_GAS.of(len(claims)):
        return settle_packed(deployment, claims)
    return settle(deployment, sorted(claims, key=terms_of))


def settlement_batches(
    claims: Iterable[Claim], most: int = MAX_CLAIMS_PER_SETTLE
) -> tuple[tuple[Claim, ...], ...]:
    """Split claims into the batches that cost the least gas in all, each one transaction.

    Claims of the same terms make a batch of their own when that pays for the transaction. The few
    that are left share plain ones. The order of claims of the same terms is kept.
    """
    groups: dict[Terms, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(terms_of(claim), []).append(claim)
    packed: list[list[Claim]] = []
    mixed: list[Claim] = []
    for _, group in sorted(groups.items()):
        alone = len(groups) == 1 or PACKED_GAS.of(len(group)) < PLAIN_GAS.row * len(group)
        if alone and _can_pack(group):
            packed.append(group)
        else:
            mixed += group
    whole = [*packed, *([mixed] if mixed else [])]
    return tuple(tuple(g[i : i + most]) for g in whole for i in range(0, len(g), most))


def estimated_gas(claims: Sequence[Claim]) -> int:
    """What settling a batch uses about, to weigh it before asking the chain."""
    plain = PLAIN_GAS.of(len(claims))
    return min(plain, PACKED_GAS.of(len(claims))) if _can_pack(claims) else plain


def estimated_bytes(claims: Sequence[Claim]) -> int:
    """How long the transaction of a batch is about, to weigh its data on a rollup."""
    packs = _can_pack(claims) and PACKED_GAS.of(len(claims)) < PLAIN_GAS.of(len(claims))
    return FIXED_BYTES + (ROW_BYTES if packs else PLAIN_ROW_BYTES) * len(claims)


def row_gas(claims: Sequence[Claim]) -> int:
    """What one more row of the kind that a batch has uses."""
    return PACKED_GAS.row if _can_pack(claims) else PLAIN_GAS.row


def _require_batch(claims: Sequence[Claim]) -> None:
    invariant(
        0 < len(claims) <= MAX_CLAIMS_PER_SETTLE, f"{len(claims)} claims do not fit one transaction"
    )


def _can_pack(claims: Sequence[Claim]) -> bool:
    terms = {terms_of(claim) for claim in claims}
    return len(terms) == 1 and all(_is_canonical(claim.signature) for claim in claims)


def _is_canonical(signature: Signature) -> bool:
    """65 bytes with v of 27 or 28 and the low s, whose top bit is free for EIP-2098."""
    return len(signature) == 65 and signature[64] in (27, 28) and signature[32] < 0x80


def _compact(signature: Signature) -> bytes:
    """EIP-2098: r, and s with the parity of v in its top bit."""
    invariant(_is_canonical(signature), "a signature that cannot be packed")
    top = signature[32] | (signature[64] - 27) << 7
    return signature[:32] + bytes([top]) + signature[33:64]
