"""What the documents say of the code is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from piecework_protocol.states import CHANNEL_TABLE, JOB_TABLE, mermaid

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bench", "contracts", "model", "node", "piecework", "protocol")
IMPORT_PACKAGES = ("bench", "piecework", "piecework_protocol", "piecework_model", "piecework_node")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
CLAUSES = set(re.findall(r"^- \*\*(\d+\.\d+)\*\*", PROTOCOL, re.MULTILINE))


def sources() -> list[Path]:
    files = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
    return [p for p in files if "node_modules" not in p.parts]


def test_every_clause_that_code_cites_exists() -> None:
    cited: dict[str, str] = {}
    for path in sources():
        text = path.read_text()
        patterns = (
            r"clauses? (\d+\.\d+)",
            r"clauses \d+\.\d+ (?:and|to) (\d+\.\d+)",
            r'Violation\(\s*"(\d+\.\d+)"',
        )
        for pattern in patterns:
            cited |= dict.fromkeys(re.findall(pattern, text), path.name)
    assert cited.keys() <= CLAUSES, {n: f for n, f in cited.items() if n not in CLAUSES}
    assert len(cited) > 20


@pytest.mark.parametrize(("name", "table"), [("job", JOB_TABLE), ("channel", CHANNEL_TABLE)])
def test_the_state_diagrams_are_those_of_the_tables(name: str, table: object) -> None:
    diagram = mermaid(table)  # type: ignore[arg-type]
    assert f"<!-- generated: {name} -->\n\n```mermaid\n{diagram}\n```\n" in PROTOCOL


def test_the_readme_is_short_and_names_only_commands_that_exist() -> None:
    from piecework.cli import COMMANDS

    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    named = set(re.findall(r"(?:^|\s|/)piecework ([a-z]+)\b", text, re.MULTILINE))
    assert named and named <= set(COMMANDS)


def test_every_relative_link_in_the_documents_leads_somewhere() -> None:
    documents = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "contracts" / "README.md",
    ]
    for document in documents:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", document.read_text()):
            assert (document.parent / target).exists(), (
                f"{document.relative_to(ROOT)} links to {target}"
            )
