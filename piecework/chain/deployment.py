"""Where the contracts of one market are. The file is what people hand to each other to trade in
it."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    "escrow_code_hash",
    "registry_code_hash",
    "block",
)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One market: chain, contracts and the keccak-256 of their code as it stood when they were
    deployed.

    `block` is where the contracts were created: no event of theirs is older. `token` is the
    market's default token and the registry's stake token. `rpc_url` is a suggestion; everybody may
    use a node of their own.
    """

    chain_id: int
    rpc_url: str
    escrow: Address
    registry: Address
    token: Address
    escrow_code_hash: Bytes32
    registry_code_hash: Bytes32
    block: int

    @property
    def domain(self) -> Domain:
        """The EIP-712 domain of every signed object of this market."""
        return Domain(self.chain_id, self.escrow)

    def with_rpc_url(self, rpc_url: str) -> Deployment:
        """The same market through another node."""
        return replace(self, rpc_url=rpc_url)

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
        """Read a deployment file; `BadDeployment` when it is absent or malformed."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_DEPLOYMENT_BYTES + 1)
        except OSError as error:
            raise BadDeployment(
                f"cannot read the deployment file {path}: {error.strerror}"
            ) from error
        if len(data) > MAX_DEPLOYMENT_BYTES:
            raise BadDeployment(
                f"the deployment file {path} is larger than {MAX_DEPLOYMENT_BYTES} bytes"
            )
        try:
            raw = loads(data)
        except ValueError as error:
            raise BadDeployment(f"the deployment file {path} is not JSON: {error}") from error
        return cls.from_json(raw)

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(json.dumps(self.to_json(), indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _integer(raw: dict[str, Any], name: str) -> int:
    value = raw[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is not a whole number")
    return value


def _url(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        raise ValueError("rpc_url is not an http or https address")
    return value
