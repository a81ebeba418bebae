"""Mutation testing of the contracts with forge.

Each mutant changes one operator, guard, effect or modifier of one line. The suite that kills most
mutants of its file is tried first, then every test. A mutant that does not compile has no score.

Verdicts are kept in build/mutants-solidity/results.jsonl. Their keys hold the contents of all
contracts, tests, vectors and settings, and the mutant. So a run goes on where the last one was cut,
and begins again when any of these has changed. FILE, such as Disputes.sol, tries one file alone.

    python -m tests.mutants.solidity [--seconds N] [--workers N] [FILE ...]
"""

from __future__ import annotations

import argparse
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tests.mutants.changes import FIRST_SUITE, Mutant, mutants
from tests.mutants.forge import ALL, CONTRACTS, ROOT, SuiteProject, WarmCompiler, project_files
from tests.mutants.results import ResultsFile, Tried, Verdict, digest_of, key_of

STAGE: Final = ROOT / "build" / "mutants-solidity"


class MutantRun:
    """What the workers share: the mutants that are left, the time, the verdicts."""

    def __init__(self, files: Sequence[str], seconds: float, results: ResultsFile) -> None:
        self._digest = digest_of(project_files(), ROOT)
        self._results = results
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self.every = [mutant for file in files for mutant in drawn(file)]
        self._left = iter([mutant for mutant in self.every if self.known(mutant) is None])
        self.undecided: set[Mutant] = set()
        self.tried_now: list[Tried] = []

    def known(self, mutant: Mutant | str) -> Tried | None:
        """Give the verdict on a mutant, or on the sources as a suite sees them."""
        return self._results.get(key_of(self._digest, mutant))

    def take(self) -> Iterator[Mutant]:
        """Give mutants to one of the workers until none is left or the time is over."""
        while time.monotonic() < self._end:
            with self._lock:
                mutant = next(self._left, None)
            if mutant is None:
                return
            yield mutant

    def add(self, mutant: Mutant | str, tried: Tried) -> None:
        """Keep a verdict, and print a mutant that lives."""
        self._results.add(key_of(self._digest, mutant), tried, str(mutant))
        if isinstance(mutant, str):
            return
        with self._lock:
            self.tried_now.append(tried)
            if tried.verdict is Verdict.UNDECIDED:
                self.undecided.add(mutant)
            if tried.verdict in {Verdict.SURVIVED, Verdict.UNDECIDED}:
                print(f"{tried.verdict.value:9}  {mutant}", flush=True)


def drawn(file: str) -> list[Mutant]:
    """Give the mutants of a file, in an order that makes a part of them a fair sample."""
    found = list(mutants(file, (CONTRACTS / "src" / file).read_text()))
    random.Random(file).shuffle(found)
    return found


def work(run: MutantRun, number: int) -> None:
    """Try mutants in projects of this worker's own."""
    with WarmCompiler() as compiler:
        projects: dict[str, SuiteProject] = {}

        def project(suite: str) -> SuiteProject:
            if suite not in projects:
                projects[suite] = SuiteProject(STAGE / f"worker{number}", suite, compiler)
                _check_unchanged(run, projects[suite], suite)
            return projects[suite]

        for mutant in run.take():
            first = FIRST_SUITE[mutant.file]
            project(first)
            started = time.monotonic()
            suite, verdict = first, project(first).tried(mutant)
            if verdict is Verdict.SURVIVED:
                suite, verdict = ALL, project(ALL).tried(mutant)
            run.add(mutant, Tried(verdict, suite, time.monotonic() - started))


def _check_unchanged(run: MutantRun, project: SuiteProject, suite: str) -> None:
    name = f"unchanged {suite}"
    known = run.known(name)
    if known is None:
        started = time.monotonic()
        known = Tried(project.tried(None), suite, time.monotonic() - started)
        run.add(name, known)
    if known.verdict is Verdict.UNDECIDED:
        raise SystemExit(f"the tests of {suite} take too long: the machine is too busy")
    if known.verdict is not Verdict.SURVIVED:
        raise SystemExit(f"the contracts fail their own tests ({suite}): run make contracts")


def report(run: MutantRun, files: Sequence[str]) -> None:
    """Print the survivors of all runs, and the score."""
    whole = Counter[str]()
    for file in files:
        counts = Counter[str]()
        for mutant in run.every:
            if mutant.file == file:
                known = run.known(mutant)
                counts["not tried" if known is None else known.verdict.value] += 1
                if known is not None and known.verdict is Verdict.SURVIVED:
                    print(f"survived   {mutant}")
        whole += counts
        print(f"{file:32} " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    decided = whole["killed"] + whole["survived"]
    print(
        f"contracts: {whole['killed']} of {decided} mutants killed, {whole['invalid']} do not "
        f"compile, {len(run.undecided)} took too long, {whole['not tried']} of {len(run.every)} "
        "are left"
    )
    if run.tried_now:
        each = sum(tried.seconds for tried in run.tried_now) / len(run.tried_now)
        by_all = sum(tried.suite == ALL for tried in run.tried_now)
        print(f"now: {len(run.tried_now)} tried, {each:.1f} s each, {by_all} needed every test")


def main() -> int:
    """Run until all are tried or the time is over."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.solidity")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("files", nargs="*", metavar="FILE", default=list(FIRST_SUITE))
    options = parser.parse_args()
    unknown = set(options.files) - FIRST_SUITE.keys()
    if unknown:
        parser.error(f"no such file: {', '.join(sorted(unknown))}; {', '.join(FIRST_SUITE)}")
    run = MutantRun(options.files, options.seconds, ResultsFile(STAGE / "results.jsonl"))
    try:
        with ThreadPoolExecutor(options.workers) as workers:
            for ended in [workers.submit(work, run, n) for n in range(options.workers)]:
                ended.result()
    finally:
        report(run, options.files)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
