"""`piecework market describe|verify`: a market's descriptor, from a file or a URL."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.chain.descriptor import MarketDescriptor
    from piecework_protocol.signing import LocalSigner
    from piecework_protocol.types import Address

SIGNATURE_SUFFIX = ".sig"


def describe(descriptor: MarketDescriptor, key: Path, password: str, out: Path) -> Address:
    """Sign a descriptor, and write both files. The key is made if there is none."""
    from piecework.base.files import write_private, write_public
    from piecework.chain.keystore import encrypt_keystore, open_keystore

    if not key.is_file():
        write_private(key, encrypt_keystore(secrets.token_bytes(32), password))
    signer: LocalSigner = open_keystore(key, password)
    write_public(out, descriptor.encode(), replace=True)
    write_public(signature_file(out), descriptor.sign(signer), replace=True)
    return signer.address


def written_before(out: Path) -> MarketDescriptor | None:
    """The descriptor that a file has. None: there is none."""
    from piecework.base.files import read
    from piecework.chain.descriptor import MAX_DESCRIPTOR_BYTES, MarketDescriptor

    if not out.is_file():
        return None
    return MarketDescriptor.decode(read(out, MAX_DESCRIPTOR_BYTES))


def was_marked(before: MarketDescriptor | None, deployment: Path) -> bool:
    """Whether the token of a deployment file was marked as a dollar in the descriptor before.

    The mark is about that one token. A descriptor of another market says nothing about it.
    """
    from piecework.chain.deployment import Deployment

    if before is None or not before.token_is_usd:
        return False
    return before.deployment.same_market(Deployment.load(deployment))


def signature_file(file: Path) -> Path:
    """Where the signature of a descriptor's file lies."""
    return file.with_name(file.name + SIGNATURE_SUFFIX)


def described(deployment: Path, **places: Any) -> MarketDescriptor:
    """A descriptor of a deployment file, held to the form that its readers demand."""
    from piecework.chain.deployment import Deployment
    from piecework.chain.descriptor import MarketDescriptor

    made = MarketDescriptor(Deployment.load(deployment), **places)
    return MarketDescriptor.decode(made.encode())


async def fetch(place: str) -> tuple[MarketDescriptor, Address]:
    """Read a descriptor and its signature, from a URL or a file.

    Raises:
        PieceworkError: one of the two cannot be read or used.
    """
    from piecework.base.files import read
    from piecework.base.http import HttpLimits, HttpReader, HttpUnreachable
    from piecework.chain.descriptor import (
        MAX_DESCRIPTOR_BYTES,
        MAX_SIGNATURE_FILE_BYTES,
        MarketDescriptor,
    )

    if place.startswith(("http://", "https://")):
        limits = HttpLimits(total_s=20.0, connect_s=10.0, max_bytes=MAX_DESCRIPTOR_BYTES)
        try:
            async with HttpReader(limits) as http:
                content, signature = await http.get(place), await http.get(place + SIGNATURE_SUFFIX)
        except HttpUnreachable as error:
            common.fail(
                f"{error}. Compare the URL with what the market publishes, and check the network "
                "here"
            )
    else:
        file = _local(place)
        content = read(file, MAX_DESCRIPTOR_BYTES)
        signature = read(signature_file(file), MAX_SIGNATURE_FILE_BYTES)
    found = MarketDescriptor.decode(content)
    return found, found.signer(signature)


def _local(place: str) -> Path:
    file = Path(place)
    if not file.exists():
        common.fail(f"{place} is not a file here, and a URL begins with https:// or http://", 2)
    return file


def say_market(descriptor: MarketDescriptor, signer: Address) -> None:
    """Show what a descriptor says. Contracts are computed here."""
    from piecework_protocol.types import address_hex

    deployment, token = descriptor.deployment, descriptor.deployment.payment_token
    rows = (
        ("signed by", address_hex(signer)),
        ("number", str(descriptor.sequence)),
        ("chain", str(deployment.chain_id)),
        ("token", f"{token.symbol} {address_hex(deployment.token)}"),
        ("stake", token.format(deployment.min_stake)),
        ("unbonding", f"{deployment.unbonding_delay_s / 86_400:g} days"),
        ("escrow", f"{address_hex(deployment.escrow)} (computed)"),
        ("registry", f"{address_hex(deployment.registry)} (computed)"),
        ("indexes", ", ".join(descriptor.indexes) or "none"),
        ("relays", ", ".join(descriptor.relays) or "none"),
        *((("faucet", descriptor.faucet),) if descriptor.faucet else ()),
        *((("dollars", f"1 {token.symbol} is 1 USD"),) if descriptor.token_is_usd else ()),
    )
    for name, value in rows:
        common.say(f"{name:10} {value}")


def market_json(descriptor: MarketDescriptor, signer: Address) -> dict[str, Any]:
    """The same for programs."""
    from piecework_protocol.types import address_hex
    from piecework_protocol.views import members

    deployment = descriptor.deployment
    return {
        "signer": address_hex(signer),
        **members(descriptor, "sequence", "indexes", "relays", "faucet", "token_is_usd"),
        "deployment": deployment.to_json(),
        **members(deployment, "escrow", "registry"),
    }
