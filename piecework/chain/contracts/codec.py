"""The ABI codec: web3's encoder, and eth-abi's decoder (which web3's is) with two types read our
way.

Imports web3, which takes most of a second: `chain.abi` imports this module when something is first
encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eth_abi.codec import ABIDecoder
from eth_abi.decoding import AddressDecoder, StringDecoder
from eth_abi.exceptions import DecodingError
from eth_abi.registry import BaseEquals, registry
from web3 import Web3

from piecework.chain.errors import BadAnswer
from piecework_protocol.types import Address

_encoder = Web3().codec


class _RawAddress(AddressDecoder):
    """Inside Piecework addresses are 20 bytes; eth-abi and web3 return text."""

    decoder_fn = staticmethod(Address)  # type: ignore[assignment]


def _own_decoder() -> ABIDecoder:
    """Text that is not UTF-8 comes out with replacement characters; web3 refuses the whole answer.

    Anybody can write such bytes into a registry entry; that must not make a whole page of workers
    unreadable.
    """
    own = registry.copy()  # type: ignore[no-untyped-call]
    text = BaseEquals("string", with_sub=False)  # type: ignore[no-untyped-call]
    address = BaseEquals("address")  # type: ignore[no-untyped-call]
    lenient = StringDecoder(handle_string_errors="replace")  # type: ignore[no-untyped-call]
    for label, matches, decoder in (("string", text, lenient), ("address", address, _RawAddress)):
        own.unregister_decoder(label)
        own.register_decoder(matches, decoder, label=label)
    return ABIDecoder(own)


_decoder = _own_decoder()


def encode(types: Sequence[str], values: Sequence[Any]) -> bytes:
    """ABI-encode, strictly: bytes32 takes 32 bytes, no fewer. Addresses are 20 bytes, structs are
    tuples."""
    return _encoder.encode(list(types), list(values))


def decode(types: Sequence[str], data: bytes, what: str) -> tuple[Any, ...]:
    """ABI-decode; addresses become 20 bytes. `BadAnswer` names `what` when the data has another
    shape."""
    try:
        return tuple(_decoder.decode(list(types), data))
    except (DecodingError, OverflowError) as error:
        raise BadAnswer(f"the node's answer for {what} does not decode: {error}") from error
