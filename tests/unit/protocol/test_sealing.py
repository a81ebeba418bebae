from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from piecework_protocol.errors import MalformedInput
from piecework_protocol.sealing import check_key, seal
from piecework_protocol.types import PublicKey, keccak256

P = 2**255 - 19
ORDER_8 = (
    0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
    0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
)
LOW_ORDER = [0, 1, P - 1, P, P + 1, *ORDER_8]
"""The points of order 1, 2, 4 and 8 with every encoding that fits 255 bits."""


@pytest.mark.parametrize("top_bit", [0, 1])
@pytest.mark.parametrize("u", LOW_ORDER)
def test_a_point_of_low_order_is_refused_by_the_check_and_by_sealing(u: int, top_bit: int) -> None:
    """X25519 ignores the top bit, so both encodings are the same point."""
    key = PublicKey((u | top_bit << 255).to_bytes(32, "little"))
    with pytest.raises(MalformedInput, match="low order"):
        check_key(key)
    with pytest.raises(MalformedInput, match="low order"):
        seal(b"", key, b"context")


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(MalformedInput, match="length"):
        check_key(PublicKey(bytes(31)))


def test_a_key_that_somebody_holds_passes() -> None:
    for number in range(16):
        secret = X25519PrivateKey.from_private_bytes(keccak256(bytes([number])))
        check_key(PublicKey(secret.public_key().public_bytes_raw()))
