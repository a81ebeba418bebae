"""Where the contracts of one market are. The file is what people hand to each other to trade in
it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piecework.base.amounts import MAX_DECIMALS, MAX_SYMBOL_CHARACTERS, Token
from piecework.base.files import FileError, read, write_public
from piecework.base.jsons import loads
from piecework.chain.errors import BadDeployment
from piecework.chain.limits import MAX_DEPLOYMENT_BYTES
from piecework_protocol.eip712 import Domain
from piecework_protocol.types import Address, Bytes32, parse_address, parse_hex, to_hex

_FIELDS = (
    "chain_id",
    "rpc_url",
    "escrow",
    "registry",
    "token",
    "token_symbol",
    "token_decimals",
    "escrow_code_hash",
    "registry_code_hash",
    "block",
)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One market: chain, contracts and the keccak-256 of their code as it stood when they were
    deployed.

    `block` is where the contracts were created: no event of theirs is older. `token` is the
    market's default token and the registry's stake token. Its symbol and decimals are what the
    chain said. `ChainReader.verify` compares them with the chain again. `rpc_url` is a suggestion:
    everybody may use a node of their own.
    """

    chain_id: int
    rpc_url: str
    escrow: Address
    registry: Address
    token: Address
    token_symbol: str
    token_decimals: int
    escrow_code_hash: Bytes32
    registry_code_hash: Bytes32
    block: int

    @property
    def domain(self) -> Domain:
        """The EIP-712 domain of every signed object of this market."""
        return Domain(self.chain_id, self.escrow)

    @property
    def payment_token(self) -> Token:
        """What amounts of this market are counted in."""
        return Token(bytes(self.token), self.token_symbol, self.token_decimals)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; addresses and hashes as 0x hex."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return {k: to_hex(v) if isinstance(v, bytes) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, raw: Any) -> Deployment:
        """`BadDeployment` names the first member that is missing, unknown or malformed."""
        if not isinstance(raw, dict):
            raise BadDeployment("a deployment is a JSON object")
        missing = [name for name in _FIELDS if name not in raw]
        unknown = sorted(str(name) for name in raw if name not in _FIELDS)
        if missing or unknown:
            raise BadDeployment(
                f"deployment: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}"
            )
        try:
            return cls(
                chain_id=_integer(raw, "chain_id"),
                rpc_url=_url(raw["rpc_url"]),
                escrow=parse_address(raw["escrow"]),
                registry=parse_address(raw["registry"]),
                token=parse_address(raw["token"]),
                token_symbol=_symbol(raw["token_symbol"]),
                token_decimals=_decimals(raw),
                escrow_code_hash=Bytes32(
                    parse_hex(raw["escrow_code_hash"], 32, "escrow_code_hash")
                ),
                registry_code_hash=Bytes32(
                    parse_hex(raw["registry_code_hash"], 32, "registry_code_hash")
                ),
                block=_integer(raw, "block"),
            )
        except (
            ValueError,
            AttributeError,
        ) as error:  # AttributeError: a number where hex text belongs
            raise BadDeployment(f"deployment: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Deployment:
        """Read a deployment file.

        Raises:
            BadDeployment: it is absent, unreadable or malformed.
        """
        try:
            raw = loads(read(path, MAX_DEPLOYMENT_BYTES))
        except FileError as error:
            raise BadDeployment(f"the deployment file cannot be used: {error}") from error
        except ValueError as error:
            raise BadDeployment(f"the deployment file {path} is not JSON: {error}") from error
        return cls.from_json(raw)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all. Everybody may read it: it is meant to be shared.

        Raises:
            FileError: the file cannot be written.
        """
        write_public(path, (json.dumps(self.to_json(), indent=2) + "\n").encode(), replace=True)


def _integer(raw: dict[str, Any], name: str) -> int:
    value = raw[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is not a whole number")
    return value


def _decimals(raw: dict[str, Any]) -> int:
    decimals = _integer(raw, "token_decimals")
    if decimals > MAX_DECIMALS:
        raise ValueError(f"token_decimals is more than {MAX_DECIMALS}")
    return decimals


def _symbol(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_SYMBOL_CHARACTERS:
        raise ValueError(f"token_symbol is not a text of up to {MAX_SYMBOL_CHARACTERS} characters")
    return value


def _url(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        raise ValueError("rpc_url is not an http or https address")
    return value
