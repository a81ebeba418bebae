"""Mutation testing of the contracts with forge.

Each mutant changes one operator, guard, effect or modifier of one line. It is killed when it does
not compile or when a test fails. One whose tests take longer than `MUTANT_TIMEOUT_S` is undecided:
gas ends every loop, so only a busy machine takes that long. There are more mutants than fit into
half an hour, so a run draws them in a seeded order until its time is over; another seed draws
others. FILE, such as Disputes.sol, draws those of one file alone.

    python -m tests.mutants.solidity [SECONDS [SEED [FILE]]]
"""

from __future__ import annotations

import enum
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGE = ROOT / "build" / "mutants-solidity"
PROJECT = STAGE / "contracts"
MUTATED = (
    "Disputes.sol",
    "Escrow.sol",
    "EvidenceVerifier.sol",
    "WorkerRegistry.sol",
    "libraries/Accounts.sol",
    "libraries/CappedTransfer.sol",
    "libraries/MerkleProof.sol",
    "libraries/PackedRows.sol",
    "libraries/Philox.sol",
    "libraries/ReceiptRules.sol",
    "libraries/TokenSignatures.sol",
    "libraries/TraceLeaves.sol",
    "libraries/TraceRules.sol",
)
# The optimizer only costs time here, and a defect that needs many fuzz runs is not one line long.
FAST = {"FOUNDRY_PROFILE": "mutants"}
# What holds the released bytes would kill every mutant, and the gas figures most of them.
SKIPPED = "GasTest|ReleaseTest"
SLOW = "InvariantTest|VectorsTest|MerkleTest"
MUTANT_TIMEOUT_S = 900
SWAPS = (
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
EFFECT = re.compile(r"^\s*[\w.\[\]]+(?:\.\w+|\[\w+\])*\s*[+-]?=(?!=)[^;]*;\s*$")
NO_CODE = re.compile(r"^\s*(//|/\*|\*|import\b|pragma\b|error\b|event\b|using\b|contract\b)")


class Verdict(enum.Enum):
    """What the tests say of a mutant."""

    KILLED = "killed"
    SURVIVED = "survived"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed line. `line` counts from zero."""

    file: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line + 1}: {self.before.strip()}  →  {self.after.strip()}"


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


def stage() -> None:
    """A copy of the project; node_modules and vectors are links."""
    shutil.rmtree(PROJECT / "src", ignore_errors=True)
    PROJECT.mkdir(parents=True, exist_ok=True)
    for name in ("src", "test", "tools", "release"):
        shutil.copytree(ROOT / "contracts" / name, PROJECT / name, dirs_exist_ok=True)
    shutil.copyfile(ROOT / "contracts" / "foundry.toml", PROJECT / "foundry.toml")
    links = {
        PROJECT / "node_modules": ROOT / "contracts" / "node_modules",
        STAGE / "tests": ROOT / "tests",
    }
    for link, target in links.items():
        if not link.is_symlink():
            link.symlink_to(target)


def tested() -> Verdict:
    """Build and test the staged project. The slow tests come second."""
    first = _tested("--no-match-contract", f"{SKIPPED}|{SLOW}")
    return _tested("--match-contract", SLOW) if first is Verdict.SURVIVED else first


def _tested(*which: str) -> Verdict:
    forge = PROJECT / "node_modules" / ".bin" / "forge"
    command = [str(forge), "test", *which, "--fail-fast"]
    try:
        ran = subprocess.run(
            command,
            cwd=PROJECT,
            env={**os.environ, **FAST},
            capture_output=True,
            check=False,
            timeout=MUTANT_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Verdict.UNDECIDED
    return Verdict.KILLED if ran.returncode else Verdict.SURVIVED


def verdict_on(mutant: Mutant) -> Verdict:
    """Try one mutant, and put the source back."""
    path = PROJECT / "src" / mutant.file
    original = path.read_text()
    lines = original.splitlines()
    lines[mutant.line] = mutant.after
    try:
        path.write_text("\n".join(lines) + "\n")
        return tested()
    finally:
        path.write_text(original)


def main() -> int:
    """Run until the time is over; print the survivors and the score."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 900.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    files = MUTATED if len(sys.argv) < 4 else (sys.argv[3],)
    stage()
    every = [
        mutant for file in files for mutant in mutants(file, (PROJECT / "src" / file).read_text())
    ]
    random.Random(seed).shuffle(every)
    unchanged = tested()
    if unchanged is Verdict.UNDECIDED:
        raise SystemExit(f"the contracts' tests take more than {MUTANT_TIMEOUT_S} s each: too busy")
    if unchanged is Verdict.KILLED:
        raise SystemExit("the contracts fail their own tests: run make contracts")
    started, counts = time.monotonic(), Counter[Verdict]()
    for mutant in every:
        if time.monotonic() - started > seconds:
            break
        verdict = verdict_on(mutant)
        counts[verdict] += 1
        if verdict is not Verdict.KILLED:
            print(f"{verdict.value:9}  {mutant}", flush=True)
    decided = counts[Verdict.KILLED] + counts[Verdict.SURVIVED]
    each = (time.monotonic() - started) / max(1, counts.total())
    print(
        f"contracts: {counts[Verdict.KILLED]} of {decided} mutants killed, "
        f"{counts[Verdict.UNDECIDED]} undecided; seed {seed}. {each:.0f} s each, so all "
        f"{len(every)} take {each * len(every) / 3600:.1f} hours"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
