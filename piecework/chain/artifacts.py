"""The compiled contracts, as committed in `contracts`. Using them needs no compiler.

`artifacts` follows the sources. `release` holds the init code that is frozen, because addresses
follow from it. Tests hold them equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from piecework.base.jsons import loads

__all__ = ["CONTRACTS", "Artifact", "frozen_init_code", "load_artifact"]

CONTRACTS = ("Escrow", "WorkerRegistry", "EvidenceVerifier", "Disputes", "TestToken")
RELEASED = ("Escrow", "WorkerRegistry", "EvidenceVerifier", "Disputes")
"""Those that everybody computes the addresses of."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One compiled contract.

    `bytecode` deploys it (constructor arguments are appended). `deployed_bytecode` is the code on
    the chain with zeros where `immutable_references`, (start, length) in bytes, say that the
    constructor writes. `source_hash` is sha256 hex over the sources and settings, see
    tools/export_artifacts.py.
    """

    contract: str
    abi: tuple[dict[str, Any], ...]
    bytecode: bytes
    deployed_bytecode: bytes
    immutable_references: tuple[tuple[int, int], ...]
    source_hash: str
    compiler_version: str
    evm_version: str
    optimizer_runs: int

    def matches(self, code: bytes) -> bool:
        """Whether `code`, read from a chain, is this contract: equal everywhere but in the
        immutables."""
        return self._without_immutables(code) == self._without_immutables(self.deployed_bytecode)

    def _without_immutables(self, code: bytes) -> bytes:
        blank = bytearray(code)
        for start, length in self.immutable_references:
            if start + length <= len(blank):
                blank[start : start + length] = bytes(length)
        return bytes(blank)


def _folder(kind: str) -> Path:
    """Where files of a kind are: a wheel carries them beside this file, a checkout keeps them in
    contracts/."""
    here = Path(__file__).resolve()
    installed = here.parent / f"contract_{kind}"
    return installed if installed.is_dir() else here.parents[2] / "contracts" / kind


@cache
def frozen_init_code(name: str) -> bytes:
    """The released init code of one of `RELEASED`, without constructor arguments."""
    if name not in RELEASED:
        raise ValueError(f"no released contract is named {name!r}: {', '.join(RELEASED)}")
    text = (_folder("release") / f"{name}.initcode.hex").read_text("ascii")
    return bytes.fromhex(text.strip().removeprefix("0x"))


@cache
def load_artifact(name: str) -> Artifact:
    """The artifact of one of `CONTRACTS`; `ValueError` for any other name."""
    if name not in CONTRACTS:
        raise ValueError(f"no contract named {name!r}; there are {', '.join(CONTRACTS)}")
    raw = loads((_folder("artifacts") / f"{name}.json").read_bytes())
    return Artifact(
        contract=raw["contract"],
        abi=tuple(raw["abi"]),
        bytecode=bytes.fromhex(raw["bytecode"].removeprefix("0x")),
        deployed_bytecode=bytes.fromhex(raw["deployedBytecode"].removeprefix("0x")),
        immutable_references=tuple(
            (span["start"], span["length"]) for span in raw["immutableReferences"]
        ),
        source_hash=raw["sourceHash"],
        compiler_version=raw["compiler"]["version"],
        evm_version=raw["compiler"]["evmVersion"],
        optimizer_runs=raw["compiler"]["optimizerRuns"],
    )
