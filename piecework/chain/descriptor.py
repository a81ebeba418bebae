"""A market's descriptor: what somebody needs to know to join it, signed by whoever runs it.

It is JSON in one form, so that its bytes can be signed. Chain, token and terms are those of a
deployment, and contracts are computed from them (`chain.addresses`). Indexes and relays are hints
that may change. A faucet is named on test networks alone. A number grows with every change, so that
nobody can serve an older descriptor again to somebody who knows a newer one.

A descriptor may have a mark: this token is 1 US dollar. It has no other price, because a price that
moves would be the word of a peer. Without a mark it has the bytes of before there was one.

The signature lies beside it. What is trusted is the address of the key that made it: a person
compares it once with what the market publishes elsewhere, and afterwards it may not change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from piecework.base.errors import PieceworkError
from piecework.base.jsons import loads
from piecework.base.text import one_line
from piecework.chain.deployment import Deployment
from piecework.chain.errors import BadDeployment
from piecework.chain.limits import DEVELOPMENT_CHAIN_IDS, TEST_CHAIN_IDS
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_ENDPOINT_BYTES
from piecework_protocol.signing import Signer, recover, sign
from piecework_protocol.types import (
    SIGNATURE_BYTES,
    Address,
    Digest,
    Signature,
    address_hex,
    parse_hex,
    to_hex,
)
from piecework_protocol.views import members

FORMAT: Final = "piecework-market/1"
MARKET_NAME: Final = "Piecework Market"
MAX_DESCRIPTOR_BYTES: Final = 64 * 1024
MAX_SIGNATURE_FILE_BYTES: Final = 1024
MAX_PLACES: Final = 16
"""Indexes, and relays."""
MAX_URL_CHARACTERS: Final = 1024
MAX_SEQUENCE: Final = 2**53 - 1
"""What every JSON reader keeps exactly."""
_MEMBERS: Final = ("format", "sequence", "deployment", "indexes", "relays", "faucet")
_MARK: Final = "token_usd"
"""A member that only a marked descriptor has. Its one value is 1."""


class BadDescriptor(PieceworkError):
    """A market's descriptor, or its signature, cannot be used. The text says why."""


class MarketChanged(PieceworkError):
    """A descriptor may not take the place of the one that was pinned."""


@dataclass(frozen=True, slots=True)
class MarketStatement(TypedData):
    """What is signed: the SHA-256 of the descriptor's bytes."""

    content: Digest


@dataclass(frozen=True, slots=True)
class MarketDescriptor:
    """One market, and where its public services are.

    indexes: URLs. relays: `host:port`, as each calls itself. faucet: a URL, on test networks.
    sequence: grows with every change. token_is_usd: the market says that its token is 1 US dollar.
    """

    deployment: Deployment
    indexes: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    faucet: str | None = None
    sequence: int = 1
    token_is_usd: bool = False

    def encode(self) -> bytes:
        """Write the one form that there is: sorted names, no spaces, UTF-8."""
        return _canonical(
            {
                "format": FORMAT,
                **members(self, "sequence", "indexes", "relays", "faucet"),
                "deployment": self.deployment.to_json(),
                **({_MARK: 1} if self.token_is_usd else {}),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> MarketDescriptor:
        """Read what `encode` writes, and nothing else.

        Raises:
            BadDescriptor: it has another form, or a member is missing, unknown or malformed.
        """
        if len(data) > MAX_DESCRIPTOR_BYTES:
            raise BadDescriptor(f"a market's descriptor is at most {MAX_DESCRIPTOR_BYTES} bytes")
        try:
            raw = loads(data)
        except (ValueError, RecursionError):
            raise BadDescriptor("the market's descriptor is not JSON") from None
        try:
            found = cls._read(raw)
            encoded = found.encode()
        except UnicodeEncodeError:
            raise BadDescriptor("the market's descriptor has text that is not Unicode") from None
        except (ValueError, BadDeployment) as error:
            raise BadDescriptor(f"the market's descriptor: {error}") from None
        if encoded != data:
            raise BadDescriptor("the market's descriptor is not in its canonical form")
        return found

    @classmethod
    def _read(cls, raw: Any) -> MarketDescriptor:
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        unknown = sorted(set(raw) - {*_MEMBERS, _MARK})
        if unknown or not raw.keys() >= set(_MEMBERS):
            named = one_line(", ".join(unknown[:5]), 100) or "nothing"
            raise ValueError(f"a member is missing or unknown: {named}")
        deployment = Deployment.from_json(raw["deployment"])
        faucet = None if raw["faucet"] is None else checked_url(raw["faucet"])
        testing = DEVELOPMENT_CHAIN_IDS | TEST_CHAIN_IDS
        if faucet is not None and deployment.chain_id not in testing:
            raise ValueError(
                f"chain {deployment.chain_id} is not a test network, so it has no faucet"
            )
        marked = _mark(raw)
        if marked and faucet is not None:
            raise ValueError(f"{_MARK}: a token that a faucet gives away is not a dollar")
        return cls(
            deployment,
            tuple(checked_url(url) for url in _places(raw, "indexes")),
            tuple(checked_relay(relay) for relay in _places(raw, "relays")),
            faucet,
            _sequence(raw["sequence"]),
            marked,
        )

    @property
    def _domain(self) -> Domain:
        return Domain(self.deployment.chain_id, self.deployment.escrow, MARKET_NAME)

    def sign(self, signer: Signer) -> bytes:
        """Return the signature file of this descriptor."""
        return _canonical({"signature": to_hex(sign(self._domain, self._statement(), signer))})

    def signer(self, signature_file: bytes) -> Address:
        """Find whose key made a signature file for exactly this descriptor.

        Raises:
            BadDescriptor: the file is malformed. Another descriptor's gives some other address.
        """
        try:
            if len(signature_file) > MAX_SIGNATURE_FILE_BYTES:
                raise ValueError("it is too large")
            raw = loads(signature_file)
            text = raw["signature"] if isinstance(raw, dict) else None
            if not isinstance(text, str):
                raise ValueError("it has no signature")
            signature = Signature(parse_hex(text, SIGNATURE_BYTES, "signature"))
            return recover(self._domain.digest(self._statement()), signature)
        except (ValueError, KeyError, RecursionError, MalformedInput) as error:
            raise BadDescriptor(f"the signature of the market's descriptor: {error}") from None

    def _statement(self) -> MarketStatement:
        return MarketStatement(Digest(hashlib.sha256(self.encode()).digest()))


@dataclass(frozen=True, slots=True)
class PinnedMarket:
    """A descriptor that somebody has accepted, and whose key signed it."""

    url: str
    signer: Address
    descriptor: MarketDescriptor

    def encode(self) -> bytes:
        """Write it for the home of whoever accepted it."""
        content = self.descriptor.encode().decode()
        values = {"url": self.url, "signer": address_hex(self.signer), "descriptor": content}
        return _canonical(values)

    @classmethod
    def decode(cls, data: bytes) -> PinnedMarket:
        """Read what `encode` writes.

        Raises:
            BadDescriptor: it is damaged.
        """
        try:
            raw = loads(data)
            signer = Address(parse_hex(raw["signer"], 20, "signer"))
            return cls(str(raw["url"]), signer, MarketDescriptor.decode(raw["descriptor"].encode()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise BadDescriptor("the pinned market of this home is damaged") from None

    def check_successor(self, newer: MarketDescriptor, signer: Address) -> None:
        """Hold a descriptor to the pinned one. Indexes, relays and the faucet may change.

        The mark of a dollar may come and go too: it moves no setting of a home that has joined.

        Raises:
            MarketChanged: another key signed it, chain, token or terms are others, or it is older.
        """
        if signer != self.signer:
            raise MarketChanged(
                f"the market's descriptor is signed by {address_hex(signer)}. This home pinned "
                f"{address_hex(self.signer)}. Ask the people who run the market why, and use "
                "another --home if that is right"
            )
        before, after = self.descriptor.deployment, newer.deployment
        for what, one, other in (
            ("chain", before.chain_id, after.chain_id),
            ("token", _token(before), _token(after)),
            ("terms", _terms(before), _terms(after)),
            ("registry", to_hex(before.registry), to_hex(after.registry)),
        ):
            if one != other:
                raise MarketChanged(
                    f"the market's descriptor names another {what} ({other}, before {one}). A "
                    "market cannot change that. Use another --home for another market"
                )
        self._check_number(newer)

    def _check_number(self, newer: MarketDescriptor) -> None:
        """Take no older descriptor, and no two with one number."""
        known, number = self.descriptor, newer.sequence
        if number < known.sequence:
            raise MarketChanged(
                f"the market's descriptor is number {number}, and this home has pinned number "
                f"{known.sequence}. Somebody serves an old one. Ask the people who run the market"
            )
        if number == known.sequence and newer.encode() != known.encode():
            raise MarketChanged(
                f"there are two descriptors of this market with number {number}. Ask the people "
                "who run the market to publish the right one with a higher number"
            )


def checked_url(value: Any) -> str:
    """Return a plain http or https URL.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, str) and len(value) <= MAX_URL_CHARACTERS and value.isprintable():
        parts = urlsplit(value)
        plain = not (parts.username or parts.password or parts.fragment)
        if parts.scheme in ("http", "https") and parts.hostname and plain:
            return value
    raise ValueError("an address is not a plain http:// or https:// URL")


def checked_relay(value: Any) -> str:
    """Return `host:port`.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, str) and len(value) <= MAX_ENDPOINT_BYTES and value.isprintable():
        host, _, port = value.rpartition(":")
        if host and not set(host) & set("/?#@ ") and port.isdecimal() and 0 < int(port) < 65536:
            return value
    raise ValueError("a relay is not host:port")


def _sequence(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SEQUENCE:
        return value
    raise ValueError(f"sequence is a whole number from 1 to {MAX_SEQUENCE}")


def _mark(raw: Mapping[str, Any]) -> bool:
    if _MARK not in raw:
        return False
    if type(raw[_MARK]) is not int or raw[_MARK] != 1:
        raise ValueError(
            f"{_MARK} is 1, or is not there: a market may say that its token is 1 USD, and sets no "
            "other price"
        )
    return True


def _canonical(values: Mapping[str, Any]) -> bytes:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"


def _places(raw: Mapping[str, Any], name: str) -> list[Any]:
    places = raw[name]
    if not isinstance(places, list) or len(places) > MAX_PLACES:
        raise ValueError(f"{name} is not a list of at most {MAX_PLACES}")
    if len({place if isinstance(place, str) else "" for place in places}) != len(places):
        raise ValueError(f"{name} has something twice, or something that is not text")
    return places


def _token(deployment: Deployment) -> str:
    token = deployment.payment_token
    return f"{to_hex(deployment.token)} {token.symbol} with {token.decimals} decimals"


def _terms(deployment: Deployment) -> str:
    delay = deployment.unbonding_delay_s
    return f"stake {deployment.min_stake} base units, unbonding {delay} s"
