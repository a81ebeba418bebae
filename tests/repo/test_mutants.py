"""The mutants of the contracts: which there are, what is kept of them, how forge's end is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.changes import FIRST_SUITE, SUITES, Mutant, mutants
from tests.mutants.forge import ALL, CONTRACTS, ForgeFault, suite_files, verdict_of
from tests.mutants.results import ResultsFile, Tried, Verdict, digest_of, key_of

KILLED = Tried(Verdict.KILLED, "escrow", 1.5)


def test_each_operator_guard_and_effect_of_a_line_is_changed_by_itself() -> None:
    source = "contract A {\n    // a < b\n    if (a <= b) revert();\n    total += 1;\n}\n"
    found = list(mutants("A.sol", source))
    assert [(mutant.line, mutant.after.strip()) for mutant in found] == [
        (2, "if (a < b) revert();"),
        (2, "if (false && a <= b) revert();"),
        (3, "total -= 1;"),
        (3, ""),
    ]
    assert found[2].applied(source).splitlines()[3] == "    total -= 1;"


def test_every_file_that_is_mutated_has_a_suite_of_test_files_that_exist() -> None:
    for file, suite in FIRST_SUITE.items():
        assert (CONTRACTS / "src" / file).is_file()
        first = suite_files(suite)
        assert {CONTRACTS / "test" / name for name in SUITES[suite]} <= first <= suite_files(ALL)
    utils = {path.name for path in suite_files("escrow")}
    assert {"EscrowBase.sol", "Deploy.sol", "Vm.sol"} <= utils
    assert "DisputesBase.sol" not in utils


@pytest.mark.parametrize(
    ("code", "output", "verdict"),
    [
        (0, "Ran 2 test suites in 1s: 12 tests passed, 0 failed, 0 skipped", Verdict.SURVIVED),
        (1, "[FAIL: assertion failed] test_a() (gas: 1)", Verdict.KILLED),
        (1, "Error: Compiler run failed:\nError (7576): Undeclared", Verdict.INVALID),
    ],
)
def test_how_forge_ends_is_a_verdict(code: int, output: str, verdict: Verdict) -> None:
    assert verdict_of(code, output) is verdict


@pytest.mark.parametrize(
    ("code", "output"),
    [
        (0, "No tests found in project!"),
        (0, "Ran 0 test suites: 0 tests passed, 0 failed, 0 skipped"),
        (1, "Error: no compiler at SOLC_SOCKET"),
        (137, ""),
    ],
)
def test_a_forge_that_did_not_test_kills_no_mutant(code: int, output: str) -> None:
    with pytest.raises(ForgeFault, match=str(code)):
        verdict_of(code, output)


def test_a_run_goes_on_after_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first = ResultsFile(path)
    first.add("one", KILLED, "a mutant")
    first.add("two", Tried(Verdict.SURVIVED, "all", 30.0), "another")
    first.add("three", Tried(Verdict.UNDECIDED, "all", 900.0), "one that took too long")
    path.write_text(path.read_text()[:-9])
    second = ResultsFile(path)
    assert second.get("one") == KILLED
    assert second.get("two") is None
    assert second.get("three") is None
    second.add("four", KILLED, "after the cut")
    assert ResultsFile(path).get("four") == KILLED


def test_a_key_changes_with_contracts_tests_and_mutant(tmp_path: Path) -> None:
    files = [tmp_path / "A.sol", tmp_path / "A.t.sol"]
    for file in files:
        file.write_text("contract A {}\n")
    before = digest_of(files, tmp_path)
    assert digest_of(files[::-1], tmp_path) == before
    files[1].write_text("contract A { }\n")
    assert digest_of(files, tmp_path) != before
    one, other = Mutant("A.sol", 1, "a + b;", "a - b;"), Mutant("A.sol", 2, "a + b;", "a - b;")
    assert len({key_of(before, one), key_of(before, other), key_of("", one)}) == 3
