"""The mutants of the contracts, and the tests that are tried first on each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SUITES: Final = {
    "escrow": (
        "escrow/Close.t.sol",
        "escrow/Deposit.t.sol",
        "escrow/Fund.t.sol",
        "escrow/Packed.t.sol",
        "escrow/Settle.t.sol",
        "escrow/Tokens.t.sol",
        "escrow/Withdrawal.t.sol",
    ),
    "registry": ("registry/Registry.t.sol", "registry/Suspension.t.sol"),
    "challenges": ("disputes/Challenges.t.sol", "disputes/Proofs.t.sol"),
    "traces": ("disputes/TraceRules.t.sol",),
    "merkle": ("Merkle.t.sol",),
}
"""Test files that are built and run together. Fewer files are compiled again for each mutant."""

FIRST_SUITE: Final = {
    "Disputes.sol": "challenges",
    "Escrow.sol": "escrow",
    "EvidenceVerifier.sol": "challenges",
    "WorkerRegistry.sol": "registry",
    "libraries/Accounts.sol": "escrow",
    "libraries/CappedTransfer.sol": "escrow",
    "libraries/MerkleProof.sol": "merkle",
    "libraries/PackedRows.sol": "escrow",
    "libraries/Philox.sol": "traces",
    "libraries/ReceiptRules.sol": "challenges",
    "libraries/TokenSignatures.sol": "escrow",
    "libraries/TraceLeaves.sol": "traces",
    "libraries/TraceRules.sol": "traces",
}
"""Every file that is mutated, with the suite that kills most of its mutants."""

SWAPS: Final = (
    (r"(?<![<>=!])<=", "<"),
    (r"(?<![<>=!-])<(?![<=])", "<="),
    (r"(?<![<>=!])>=", ">"),
    (r"(?<![<>=!-])>(?![>=])", ">="),
    (r"(?<![<>=!])==", "!="),
    (r"!=", "=="),
    (r"&&", "||"),
    (r"\|\|", "&&"),
    (r"(?<= )\+(?= )", "-"),
    (r"(?<= )-(?= )", "+"),
    (r"(?<= )\+=(?= )", "-="),
    (r"(?<= )-=(?= )", "+="),
    (r"\+\+", "--"),
    (r" nonReentrant\b", ""),
    (r"\bif \((?!false)", "if (false && "),
)
EFFECT: Final = re.compile(r"^\s*[\w.\[\]]+(?:\.\w+|\[\w+\])*\s*[+-]?=(?!=)[^;]*;\s*$")
NO_CODE: Final = re.compile(r"^\s*(//|/\*|\*|import\b|pragma\b|error\b|event\b|using\b|contract\b)")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed line. `line` counts from zero."""

    file: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line + 1}: {self.before.strip()}  →  {self.after.strip()}"

    def applied(self, source: str) -> str:
        """Give the source with this line changed."""
        lines = source.splitlines()
        lines[self.line] = self.after
        return "\n".join(lines) + "\n"


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a file."""
    for number, line in enumerate(source.splitlines()):
        code = line.split("//")[0]
        if not code.strip() or NO_CODE.match(line):
            continue
        for pattern, replacement in SWAPS:
            for found in re.finditer(pattern, code):
                after = code[: found.start()] + replacement + code[found.end() :]
                yield Mutant(file, number, line, after)
        if EFFECT.match(code):
            yield Mutant(file, number, line, "")
