"""A market's deployment file: its chain, its token and its terms. People hand it to each other.

It names no contract: everybody computes the addresses (`chain.addresses`). So a file can describe
another market, and cannot send anybody's money to other code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from piecework.base.amounts import MAX_DECIMALS, MAX_SYMBOL_CHARACTERS, Token
from piecework.base.files import FileError, read, shown, write_public
from piecework.base.hosts import LOOPBACK
from piecework.base.jsons import loads
from piecework.base.text import one_line
from piecework.chain.addresses import (
    DisputeTerms,
    StakeTerms,
    disputed_registry_address,
    disputes_address,
    escrow_address,
    registry_address,
    verifier_address,
)
from piecework.chain.errors import BadDeployment
from piecework.chain.limits import (
    DEVELOPMENT_CHAIN_IDS,
    MAX_CHAIN_ID,
    MAX_COMMITTEE,
    MAX_DEPLOYMENT_BYTES,
    MAX_DISPUTE_AMOUNT,
    MAX_MIN_STAKE,
    MAX_UNBONDING_DELAY_S,
    MIN_UNBONDING_DELAY_S,
)
from piecework_protocol.eip712 import Domain
from piecework_protocol.types import Address, Amount, Seconds, parse_address, to_hex
from piecework_protocol.views import as_json

VERSION: Final = 2
_REQUIRED: Final = ("version", "chain_id", "token", "terms")
_OPTIONAL: Final = ("from_block", "rpc_url", "disputes")
_DISPUTE_TERMS: Final = ("proving_cost", "min_bond_wei", "verdict_fee", "committee", "threshold")


@dataclass(frozen=True, slots=True)
class Deployment:
    """One market.

    `token` is the market's default token and the registry's stake token. Its decimals and symbol
    are what the chain said, and `ChainReader` compares them with the chain again. `min_stake` is in
    base units. `from_block` is where the contracts were created, if known: no event of theirs is
    older. `rpc_url` is set for a market on this machine only, else everybody names a node of their
    own. `disputes` is None in a market without disputes: there nobody can take a stake.
    """

    chain_id: int
    token: Address
    token_symbol: str
    token_decimals: int
    min_stake: Amount
    unbonding_delay_s: Seconds
    from_block: int | None = None
    rpc_url: str | None = None
    disputes: DisputeTerms | None = None

    @property
    def escrow(self) -> Address:
        """Where the escrow is: a constant of its frozen init code."""
        return escrow_address()

    @property
    def registry(self) -> Address:
        """Where the registry of these terms is. The dispute contract has its own."""
        if self.disputes is not None:
            return disputed_registry_address(self.stake_terms, self.disputes)
        return registry_address(self.token, self.min_stake, self.unbonding_delay_s)

    @property
    def stake_terms(self) -> StakeTerms:
        """The terms of the registry."""
        return StakeTerms(self.token, self.min_stake, self.unbonding_delay_s)

    @property
    def verifier(self) -> Address:
        """Where the verifier of evidence is: it follows from frozen init code."""
        return verifier_address()

    @property
    def disputes_contract(self) -> Address | None:
        """Where the dispute contract of these terms is, if the market has one."""
        terms = self.disputes
        return None if terms is None else disputes_address(self.stake_terms, terms)

    @property
    def domain(self) -> Domain:
        """The EIP-712 domain of every signed object of this market."""
        return Domain(self.chain_id, self.escrow)

    @property
    def payment_token(self) -> Token:
        """What amounts of this market are counted in."""
        return Token(bytes(self.token), self.token_symbol, self.token_decimals)

    def same_market(self, other: Deployment) -> bool:
        """Whether both name the same contracts on the same chain."""
        return (self.chain_id, self.registry) == (other.chain_id, other.registry)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; the address as 0x hex. What is not known is left out."""
        values: dict[str, Any] = {
            "version": VERSION,
            "chain_id": self.chain_id,
            "token": {
                "address": to_hex(self.token),
                "decimals": self.token_decimals,
                "symbol": self.token_symbol,
            },
            "terms": {
                "min_stake": self.min_stake,
                "unbonding_seconds": self.unbonding_delay_s,
            },
            "from_block": self.from_block,
            "rpc_url": self.rpc_url,
            "disputes": as_json(self.disputes),
        }
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, raw: Any) -> Deployment:
        """Parse what `to_json` makes.

        Raises:
            BadDeployment: it is of another version, or a member is missing, unknown or malformed.
        """
        if not isinstance(raw, dict):
            raise BadDeployment("a deployment is a JSON object")
        _require_version(raw)
        try:
            _require_members(raw, "deployment", _REQUIRED, _OPTIONAL)
            token = _object(raw, "token", ("address", "decimals", "symbol"))
            terms = _object(raw, "terms", ("min_stake", "unbonding_seconds"))
            delay = _integer(
                terms, "unbonding_seconds", MIN_UNBONDING_DELAY_S, MAX_UNBONDING_DELAY_S
            )
            return cls(
                chain_id=_integer(raw, "chain_id", 1, MAX_CHAIN_ID),
                token=_address(token["address"]),
                token_symbol=_symbol(token["symbol"]),
                token_decimals=_integer(token, "decimals", 0, MAX_DECIMALS),
                min_stake=Amount(_integer(terms, "min_stake", 1, MAX_MIN_STAKE)),
                unbonding_delay_s=Seconds(delay),
                from_block=_integer(raw, "from_block") if "from_block" in raw else None,
                rpc_url=_loopback(raw["rpc_url"]) if "rpc_url" in raw else None,
                disputes=_dispute_terms(raw) if "disputes" in raw else None,
            )
        except ValueError as error:
            raise BadDeployment(f"deployment: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Deployment:
        """Read a deployment file.

        Raises:
            BadDeployment: it is absent, unreadable, malformed or of another version.
        """
        try:
            raw = loads(read(path, MAX_DEPLOYMENT_BYTES))
        except FileError as error:
            raise BadDeployment(f"the deployment file cannot be used: {error}") from error
        except ValueError as error:
            raise BadDeployment(
                f"the deployment file {shown(path)} is not JSON: {error}"
            ) from error
        return cls.from_json(raw)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all. Everybody may read it: it is meant to be shared.

        Raises:
            FileError: the file cannot be written.
        """
        write_public(path, (json.dumps(self.to_json(), indent=2) + "\n").encode(), replace=True)


def require_file_of_a_development_chain(path: Path) -> None:
    """Refuse to write a development chain's deployment to a place that is not for it.

    Raises:
        BadDeployment: it is a folder, or a file that is not a development chain's deployment.
    """
    if path.is_dir():
        raise BadDeployment(
            f"{shown(path)} is a directory. Name the file: {shown(path / 'deployment.json')}"
        )
    if not path.parent.is_dir():
        raise BadDeployment(f"there is no directory {shown(path.parent)}")
    if not path.exists():
        return
    try:
        raw = loads(read(path, MAX_DEPLOYMENT_BYTES))
    except (FileError, ValueError):
        raw = None
    if not isinstance(raw, dict) or raw.get("chain_id") not in DEVELOPMENT_CHAIN_IDS:
        raise BadDeployment(
            f"{shown(path)} is there and is not a development chain's deployment. "
            "It is left as it is: name another file"
        )


def dispute_terms_of(found: bytes) -> DisputeTerms:
    """Read the terms of a dispute contract: the JSON object that a deployment file has for them.

    Raises:
        BadDeployment: they are malformed, or the contract would refuse them.
    """
    try:
        return _dispute_terms({"disputes": loads(found)})
    except ValueError as error:
        raise BadDeployment(f"the terms of a dispute contract: {error}") from error


def _dispute_terms(raw: Mapping[str, Any]) -> DisputeTerms:
    """The terms that the contract takes: what it refuses is not a market."""
    terms = _object(raw, "disputes", _DISPUTE_TERMS)
    listed = terms["committee"]
    if not isinstance(listed, list) or len(listed) > MAX_COMMITTEE:
        raise ValueError(f"committee is not a list of up to {MAX_COMMITTEE} addresses")
    committee = tuple(_address(member) for member in listed)
    if list(committee) != sorted(set(committee)):
        raise ValueError("the committee's addresses ascend, and each is there once")
    if Address(bytes(20)) in committee:
        raise ValueError("the zero address is not a member of a committee")
    least = len(committee) // 2 + 1 if committee else 0
    return DisputeTerms(
        proving_cost=Amount(_integer(terms, "proving_cost", 1, MAX_DISPUTE_AMOUNT)),
        min_bond_wei=_integer(terms, "min_bond_wei", 0, MAX_DISPUTE_AMOUNT),
        verdict_fee=Amount(_integer(terms, "verdict_fee", 0, MAX_DISPUTE_AMOUNT)),
        committee=committee,
        threshold=_integer(terms, "threshold", least, len(committee)),
    )


def _require_version(raw: Mapping[str, Any]) -> None:
    version = raw.get("version")
    if version == VERSION and isinstance(version, int):
        return
    if version is None and "escrow" in raw:
        raise BadDeployment(
            "this deployment file is of version 1, which named contracts. This program reads "
            f"version {VERSION}. Ask the people who run the market for the new file"
        )
    raise BadDeployment(
        f"this deployment file is of version {one_line(repr(version), 40)}. "
        f"This program reads version {VERSION}"
    )


def _require_members(
    raw: Mapping[str, Any], what: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    missing = [name for name in required if name not in raw]
    unknown = [one_line(str(name), 40) for name in raw if name not in (*required, *optional)]
    if missing or unknown:
        raise ValueError(
            f"{what}: missing {', '.join(missing) or 'nothing'}, "
            f"unknown {', '.join(sorted(unknown)[:5]) or 'nothing'}"
        )


def _object(raw: Mapping[str, Any], name: str, members: tuple[str, ...]) -> Mapping[str, Any]:
    value = raw[name]
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object")
    _require_members(value, name, members)
    return value


def _integer(raw: Mapping[str, Any], name: str, least: int = 0, most: int = 2**63 - 1) -> int:
    value = raw[name]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is not a whole number from {least} to {most}")
    return value


def _address(value: Any) -> Address:
    if not isinstance(value, str):
        raise ValueError("an address is not text")
    return parse_address(value)


def _symbol(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_SYMBOL_CHARACTERS:
        raise ValueError(f"symbol is not a text of up to {MAX_SYMBOL_CHARACTERS} characters")
    return value


def _loopback(value: Any) -> str:
    """A node is trusted with every balance that it reports, so a file may name one of this machine
    and no other."""
    if isinstance(value, str):
        parts = urlsplit(value)
        if parts.scheme in ("http", "https") and parts.hostname in LOOPBACK:
            return value
    raise ValueError(
        "rpc_url is not the address of a node on this machine. "
        "A file may name no other. Set rpc_url in your own settings"
    )
