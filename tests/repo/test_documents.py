"""What the documents say of the code is true, and a tired reader can read it."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from docs.tools import reference
from piecework_protocol.states import CHANNEL_TABLE, JOB_TABLE, mermaid
from tests.support.documents import CODE, DATA, Block, blocks, pages
from tests.support.source_facts import facts_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bench", "contracts", "docs", "model", "node", "piecework", "protocol", "requirements")
IMPORT_PACKAGES = ("bench", "piecework", "piecework_protocol", "piecework_model", "piecework_node")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
CLAUSES = set(re.findall(r"^- \*\*(\d+\.\d+)\*\*", PROTOCOL, re.MULTILINE))
WIDTH = 100
MOST_SEMICOLONS = 4
"""In a hundred sentences of prose."""
HISTORY = frozenset({"docs/LOG.md"})
"""Old entries keep their wording."""
GLOSSARY_TERMS = (
    "accumulator",
    "base unit",
    "canvas",
    "challenge",
    "channel",
    "committee",
    "credit",
    "denoising step",
    "deployment",
    "descriptor",
    "dispute",
    "fault",
    "home",
    "market",
    "model digest",
    "offer",
    "owner",
    "pause",
    "peaks",
    "piece",
    "profile",
    "receipt",
    "session key",
    "signer",
    "unbonding",
    "voucher",
)
SOLIDITY = re.compile(r"^```solidity\n.*?^```$", re.MULTILINE | re.DOTALL)
"""forge formats it, to a width of its own."""
END = "\x01"
"""Between the strings of the program."""
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def sources() -> list[Path]:
    files = [p for package in PACKAGES for p in (ROOT / package).rglob("*.py")]
    return [p for p in files if "node_modules" not in p.parts]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without code, tables, headings and comments."""
    text = FENCE.sub("", page.read_text())
    lines = [x for x in text.splitlines() if not x.lstrip().startswith(("|", "#", "<!--", ":::"))]
    return "\n".join(lines)


def written_pages() -> list[Path]:
    """Every page that a person writes."""
    return [p for p in pages() if not p.read_text().startswith(reference.HEAD)]


def test_no_two_clauses_have_one_number() -> None:
    numbers = re.findall(r"^- \*\*(\d+\.\d+)\*\*", PROTOCOL, re.MULTILINE)
    assert [number for number, times in Counter(numbers).items() if times > 1] == []


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
    for page in pages():
        links = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text())
        for target, anchor in links:
            where = page.parent / target if target else page
            assert where.exists(), f"{name_of(page)} links to {target}"
            if anchor and where.suffix == ".md":
                assert anchor in anchors(where), f"{name_of(page)} links to {target}#{anchor}"


@cache
def anchors(page: Path) -> frozenset[str]:
    """The names of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return frozenset(re.sub(r"[\s]+", "-", heading) for heading in plain)


# --- a tired reader


def test_no_line_of_prose_is_wider_than_a_hundred_columns() -> None:
    wide = [
        f"{name_of(page)}: {len(line)} columns: {line[:60]}…"
        for page in pages()
        for line in SOLIDITY.sub("", page.read_text()).splitlines()
        if len(line) > WIDTH and not line.lstrip().startswith("|")
    ]
    assert not wide, "\n".join(wide)


def test_sentences_carry_one_fact_each() -> None:
    chains = []
    for page in written_pages():
        text = prose(page)
        sentences = len(re.findall(r"[.!?:](?:\s|$)", text)) or 1
        allowed = max(1, MOST_SEMICOLONS * sentences // 100)
        if text.count(";") > allowed and name_of(page) not in HISTORY:
            chains.append(f"{name_of(page)}: {text.count(';')} in {sentences} sentences")
    assert not chains, "\n".join(chains)


def test_a_page_of_the_guides_says_first_who_it_is_for() -> None:
    folders = ("owners", "apps", "contracts")
    for page in (p for f in folders for p in (ROOT / "docs" / f).glob("*.md")):
        opening = " ".join(page.read_text().split("\n\n")[1].split())
        assert opening.startswith("This page is for "), name_of(page)


THERE_IS_NO = re.compile(r"\b[Tt]here (?:is|are|was|were) no ")
IS_NO = re.compile(
    r"(?<![\w-])(?:[Ii]s|[Aa]re|[Ww]as|[Ww]ere) no (?!(?:longer|more|less|earlier|one|other)\b)\w+"
)
"""As in "a name is no address". Plain English is "a name is not an address"."""


def said_to_be_no(text: str) -> list[str]:
    """Where a text says that something is no something else."""
    return IS_NO.findall(THERE_IS_NO.sub("", " ".join(text.split())))


def test_the_rule_of_plain_negations_sees_what_it_is_about() -> None:
    assert said_to_be_no("A name is no\n    address.") == ["is no address"]
    assert said_to_be_no("There is no address. It is no longer one, and costs are no more.") == []


def test_no_message_docstring_or_page_says_that_something_is_no_something() -> None:
    found = [
        f"{name_of(path)}: {words}"
        for path in sources()
        if path.relative_to(ROOT).parts[0] != "model"
        for text in facts_of(path).strings
        for words in said_to_be_no(text)
    ]
    found += [
        f"{name_of(page)}: {words}"
        for page in pages()
        if name_of(page) not in HISTORY | {"CHANGELOG.md"}
        for words in said_to_be_no(page.read_text())
    ]
    assert not found, "\n".join(found)


# --- what the code says


def test_the_reference_pages_are_those_of_the_code() -> None:
    assert reference.stale() == [], "run make reference"


@pytest.mark.parametrize("role", ["worker", "client"])
def test_every_setting_is_in_the_reference_with_a_sentence(role: str) -> None:
    from piecework.client.config import ClientConfig
    from piecework_node.config import WorkerConfig

    models: dict[str, type[BaseModel]] = {"worker": WorkerConfig, "client": ClientConfig}
    settings = models[role].model_json_schema()
    text = reference.settings_page()
    for name, schema in settings["properties"].items():
        assert f"| `{name}` |" in text
        assert reference.note(role, name, schema), f"docs/tools/notes.toml lacks {role} {name}"
    assert reference.NOTES["settings"][role].keys() <= settings["properties"].keys()


def test_every_refusal_has_a_meaning_in_the_reference() -> None:
    from piecework_protocol.errors import Reason

    assert reference.NOTES["reasons"].keys() == {reason.name for reason in Reason}
    text = (ROOT / "docs" / "reference" / "errors.md").read_text()
    assert all(f"| `{reason.name}` |" in text for reason in Reason)


def test_every_metric_that_a_page_names_exists() -> None:
    known = set(re.findall(r"`(piecework_\w+)`", reference.metrics_page()))
    families = ("piecework_node", "piecework_protocol", "piecework_model")
    for page in pages():
        named = set(re.findall(r"`(piecework_[a-z_]+)`", page.read_text())) - set(families)
        assert named <= known, f"{name_of(page)}: {sorted(named - known)}"


def test_every_command_that_a_page_names_exists() -> None:
    commands = reference.commands_page()
    for page in written_pages():
        if name_of(page) in HISTORY or name_of(page) == "CHANGELOG.md":
            continue
        named = re.findall(
            r"piecework (worker|client|chain|market|models) ([a-z]+(?:-[a-z]+)*)",
            page.read_text(),
        )
        for group, verb in named:
            known = rf"^### piecework {group} {verb}(?: |$)"
            assert re.search(known, commands, re.MULTILINE), f"{name_of(page)}: {group} {verb}"


def test_the_reference_shows_the_arguments_that_the_help_shows() -> None:
    from piecework.cli import COMMANDS, parsed

    pending = [(f"piecework {name}", parsed(name)) for name in COMMANDS]
    text = reference.commands_page()
    seen = 0
    while pending:
        path, command = pending.pop()
        below = getattr(command, "commands", {})
        pending += [(f"{path} {verb}", child) for verb, child in below.items()]
        pieces = command.collect_usage_pieces(command.context_class(command, info_name=path))
        words = [piece.upper().replace("{", "").replace("}", "") for piece in pieces[1:] if piece]
        if words and not below:
            seen += 1
            assert f"```text\n{path} {' '.join(words)} [OPTIONS]\n```" in text
    assert seen > 10


def test_the_glossary_has_the_words_that_newcomers_miss() -> None:
    headings = re.findall(r"^### (.+)$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(headings) == len(set(headings))
    missing = set(GLOSSARY_TERMS) - {heading.lower() for heading in headings}
    assert not missing


def test_every_message_of_the_troubleshooting_page_is_one_that_the_code_prints() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^### `(.+)`$", text, re.MULTILINE)
    assert len(quoted) > 20
    said = END.join(words for path in sources() for words in facts_of(path).strings)
    unknown = []
    for message in quoted:
        parts = [re.escape(part) for part in message.split("…")]
        if not re.search(f"[^{END}]*".join(parts), said):
            unknown.append(message)
    assert not unknown, "\n".join(unknown)


def test_every_fault_code_is_in_the_troubleshooting_page_and_in_the_reference() -> None:
    from piecework_node.runtime.faults import Code

    for page in ("troubleshooting.md", "reference/errors.md"):
        text = (ROOT / "docs" / page).read_text()
        assert [code.value for code in Code if f"| `{code.value}` |" not in text] == [], page


# --- code blocks


def every_block() -> list[Block]:
    return [block for page in pages() for block in blocks(page)]


def test_every_fence_has_a_language_that_says_whether_it_is_code() -> None:
    for page in pages():
        text = page.read_text()
        assert text.count("\n```") == 2 * len(blocks(page)), f"{name_of(page)}: an odd fence"
    strange = [f"{b.where} {b.language!r}" for b in every_block() if b.language not in CODE | DATA]
    assert not strange, "\n".join(strange)


def test_every_block_of_code_is_run_or_says_why_not() -> None:
    kinds = re.compile(r"run|run by \S+|from \S+|not tried( here)?: .{10,}")
    bare = [b.where for b in every_block() if b.language in CODE and not kinds.fullmatch(b.marker)]
    assert not bare, "no marker before: " + ", ".join(bare)


def test_blocks_that_are_taken_from_a_file_are_in_that_file() -> None:
    for block in every_block():
        kind, _, file = block.marker.partition(" ")
        if kind == "from":
            assert block.text in (ROOT / file).read_text(), block.where
        elif block.marker.startswith("run by "):
            file = block.marker.removeprefix("run by ")
            text = (ROOT / file).read_text()
            for line in block.text.replace("\\\n", " ").splitlines():
                command = line.split("#")[0].strip()
                assert command in text, f"{block.where}: {file} does not run {command!r}"
