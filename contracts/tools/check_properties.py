#!/usr/bin/env python3
"""Hold PROPERTIES.md, which says what is promised, equal to the tests and proofs that exist (no
dependencies)."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = r"(?:test|testFuzz|invariant|check)_\w+"
NAME = re.compile(rf"`({KINDS})`")
FUNCTION = re.compile(rf"function ({KINDS})")
PROPERTY = re.compile(r"^\*\*([A-Z]\d+)\. ", re.MULTILINE)


def main() -> int:
    """1 when a promise has no test, a test holds no promise, or an id is used twice."""
    text = (ROOT / "PROPERTIES.md").read_text()
    files = [*ROOT.glob("test/**/*.t.sol"), *ROOT.glob("symbolic/*.sol")]
    written = Counter(name for path in files for name in FUNCTION.findall(path.read_text()))
    promised = set(NAME.findall(text))
    ids = Counter(PROPERTY.findall(text))
    problems = [f"{name}: a property names it, but it does not exist" for name in promised]
    problems = [line for line in problems if line.split(":")[0] not in written]
    problems += [f"{name}: holds no property" for name in written if name not in promised]
    problems += [f"{name}: two tests have this name" for name, n in written.items() if n > 1]
    problems += [f"{name}: two properties have this id" for name, n in ids.items() if n > 1]
    sections = PROPERTY.split(text)[1:]
    for name, body in zip(sections[::2], sections[1::2], strict=True):
        if not NAME.search(body):
            problems.append(f"{name}: nothing holds it")
    for problem in sorted(problems):
        print(problem, file=sys.stderr)
    return 1 if problems or not ids else 0


if __name__ == "__main__":
    sys.exit(main())
