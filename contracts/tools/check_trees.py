#!/usr/bin/env python3
"""Hold the .tree files, which say what is promised, equal to the tests that exist (no
dependencies)."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "test"
NAME = re.compile(r"\b(?:test|testFuzz|invariant)_\w+")
FUNCTION = re.compile(r"function ((?:test|testFuzz|invariant)_\w+)")


def main() -> int:
    promised = Counter(n for p in TESTS.rglob("*.tree") for n in NAME.findall(p.read_text()))
    written = Counter(n for p in TESTS.rglob("*.t.sol") for n in FUNCTION.findall(p.read_text()))
    problems = [f"{name}: in a tree, but no such test" for name in promised - written]
    problems += [f"{name}: a test, but in no tree" for name in written - promised]
    for problem in sorted(problems):
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
