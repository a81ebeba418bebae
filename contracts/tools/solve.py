#!/usr/bin/env python3
"""Answer a query of halmos with the first of three solvers that can: `solve.py QUERY.smt2`.

No solver decides every query of the escrow. Most take yices a hundredth of a second. Sums of
amounts that lie in one word take yices, z3 and bitwuzla an hour, and cvc5 a second once it reads
them as integers. z3 simplifies what is left.

Each may prove that a query has no solution. Only z3 may show one, as yices 2.6.4 shows some that
are none (PROPERTIES.md).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import cvc5

BIN = Path(sys.executable).parent
# A solver that cannot decide a query within seconds mostly never does.
YICES_SECONDS, CVC5_SECONDS = 4, 8


def first_line(command: list[str], seconds: int) -> str:
    """What a solver says first, or nothing if that takes it too long."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return ran.stdout.partition("\n")[0].strip()


def with_integers(query: str) -> str:
    """What cvc5 says of a query whose words it reads as integers."""
    terms = cvc5.TermManager()
    solver = cvc5.Solver(terms)
    solver.setOption("solve-bv-as-int", "sum")
    parser = cvc5.InputParser(solver)
    parser.setFileInput(cvc5.InputLanguage.SMT_LIB_2_6, query)
    while not (command := parser.nextCommand()).isNull():
        if command.getCommandName() == "set-logic":
            solver.setLogic("ALL")  # halmos' own has no integers
            continue
        said = command.invoke(solver, parser.getSymbolManager()).strip()
        if command.getCommandName() == "check-sat":
            return str(said)
    return ""


def main() -> int:
    """Print `unsat`, or become z3."""
    if sys.argv[1] == "--with-integers":
        print(with_integers(sys.argv[2]))
        return 0
    query = sys.argv[1]
    said = first_line([str(BIN / "yices-smt2"), query], YICES_SECONDS)
    if not said:
        said = first_line([sys.executable, "-P", __file__, "--with-integers", query], CVC5_SECONDS)
    if said != "unsat":
        become_z3(query)
    print(said)
    return 0


def become_z3(query: str) -> NoReturn:
    """halmos ends the process that it started, so this one has no child to leave behind."""
    os.execv(BIN / "z3", [str(BIN / "z3"), query])  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
