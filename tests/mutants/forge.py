"""forge on copies of the contracts' project, one copy for each suite, with a compiler kept warm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.mutants.changes import SUITES, Mutant
from tests.mutants.results import Verdict

ROOT: Final = Path(__file__).resolve().parents[2]
CONTRACTS: Final = ROOT / "contracts"
TIMEOUT_S: Final = 900
ALL: Final = "all"
"""The suite of every test but `SKIPPED`."""
# What holds the released bytes would kill every mutant, and the gas figures most of them.
SKIPPED: Final = frozenset({"Gas.t.sol", "Release.t.sol"})
SOLC: Final = ROOT / "tests" / "mutants" / "solc.js"
_IMPORT: Final = re.compile(r"""^\s*(?:import\b|\})[^;"]*"(\.[^"]+)";""", re.MULTILINE)


class ForgeFault(Exception):
    """forge ended for another reason than a test or the compiler's verdict."""


class WarmCompiler:
    """solc-js in a process that stays. It ends with the context, or with this process."""

    def __init__(self) -> None:
        # A socket's path may have 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="solc-")
        self.socket = str(Path(self._folder.name) / "s")
        package = str(CONTRACTS / "node_modules" / "solc")
        self._server = subprocess.Popen(
            [str(SOLC), "serve", self.socket, package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"ready\n":
            raise ForgeFault("solc-js did not start: run make contracts")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.communicate()
        self._folder.cleanup()


class SuiteProject:
    """A copy of sources and of one suite's tests, which forge builds once and then in parts.

    A project of its own needs no filter of tests. For a filter, forge compiles everything twice.
    """

    def __init__(self, folder: Path, suite: str, compiler: WarmCompiler) -> None:
        self._project = folder / suite / "contracts"
        self._compiler = compiler
        self._project.mkdir(parents=True, exist_ok=True)
        kept = {*_sources(), *suite_files(suite)}
        for path in kept:
            _copy(path, self._project / path.relative_to(CONTRACTS))
        for path in self._project.glob("*/**/*.sol"):
            inside = path.relative_to(self._project)
            if inside.parts[0] in {"src", "test"} and CONTRACTS / inside not in kept:
                path.unlink()
        _copy(CONTRACTS / "foundry.toml", self._project / "foundry.toml")
        _link(self._project / "node_modules", CONTRACTS / "node_modules")
        _link(self._project.parent / "tests", ROOT / "tests")

    def tried(self, mutant: Mutant | None) -> Verdict:
        """Test one mutant, or the sources as they are. The copy is as before afterwards.

        Raises:
            ForgeFault: forge ended for another reason.
        """
        if mutant is None:
            return self._tested()
        path = self._project / "src" / mutant.file
        source = path.read_text()
        try:
            path.write_text(mutant.applied(source))
            return self._tested()
        finally:
            path.write_text(source)

    def _tested(self) -> Verdict:
        forge = self._project / "node_modules" / ".bin" / "forge"
        settings = {
            # The optimizer only costs time here. One line's defect needs few fuzz runs.
            "FOUNDRY_PROFILE": "mutants",
            "FOUNDRY_SOLC": str(SOLC),
            "FOUNDRY_LINT_ON_BUILD": "false",
            "SOLC_SOCKET": self._compiler.socket,
        }
        try:
            ran = subprocess.run(
                [str(forge), "test", "--fail-fast", "--threads", "1"],
                cwd=self._project,
                env={**os.environ, **settings},
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return Verdict.UNDECIDED
        return verdict_of(ran.returncode, ran.stdout + ran.stderr)


def verdict_of(code: int, output: str) -> Verdict:
    """Read how forge ended.

    Raises:
        ForgeFault: neither a test nor the compiler says why.
    """
    if code == 0 and re.search(r"\b[1-9]\d* tests passed, 0 failed", output):
        return Verdict.SURVIVED
    if "Compiler run failed" in output:
        return Verdict.INVALID
    if code != 0 and "[FAIL" in output:
        return Verdict.KILLED
    raise ForgeFault(f"forge ended with {code}:\n{output[-2000:]}")


def suite_files(suite: str) -> set[Path]:
    """The files under test/ that a suite needs."""
    folder = CONTRACTS / "test"
    if suite == ALL:
        return {path for path in folder.rglob("*.sol") if path.name not in SKIPPED}
    return _with_imports(folder / name for name in SUITES[suite])


def project_files() -> set[Path]:
    """Everything that a verdict depends on."""
    vectors = (ROOT / "tests" / "vectors").rglob("*.json")
    settings = {CONTRACTS / "foundry.toml", CONTRACTS / "package-lock.json"}
    return {*_sources(), *suite_files(ALL), *vectors, *settings}


def _sources() -> set[Path]:
    return set((CONTRACTS / "src").rglob("*.sol"))


def _with_imports(first: Iterable[Path]) -> set[Path]:
    found: set[Path] = set()
    waiting = list(first)
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        imported = (path.parent / name for name in _IMPORT.findall(path.read_text()))
        waiting += [at for at in map(Path.resolve, imported) if "test" in at.parts]
    return {path for path in found if path.is_relative_to(CONTRACTS / "test")}


def _copy(source: Path, target: Path) -> None:
    """Write a file only if it differs, so that forge's cache stays good."""
    content = source.read_bytes()
    if not target.is_file() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(target)
