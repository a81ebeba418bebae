"""Every command and option that a page names exists, in code blocks and in inline code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from piecework.cli import COMMANDS, parsed
from tests.repo.test_documents import HISTORY, name_of, written_pages

SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAID = re.compile(r"(?:^|[\s/(])piecework ([^|;&#>\n]+)")
DEMO = re.compile(r"make demo ARGS=(?:\"([^\"]*)\"|(\S+))")
WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")
OPTION = re.compile(r"--?[a-z][a-z0-9-]*")
HELP = frozenset({"--help", "-h", "--version"})


@cache
def command(name: str) -> Any:
    return parsed(name)


def said_in(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the arguments of each `piecework` in a page's code, and whether it was named."""
    for block in FENCED.findall(text):
        for line in SAID.findall(block.replace("\\\n", " ")):
            yield line, True
        yield from demo_in(block)
    for span in SPAN.findall(FENCED.sub("", text)):
        words = " ".join(span.split())
        yield from demo_in(words)
        found = SAID.findall(words)
        for line in found:
            yield line, True
        if not found and words.split()[0] in COMMANDS:
            yield words, False


def demo_in(text: str) -> Iterator[tuple[str, bool]]:
    for quoted, bare in DEMO.findall(text):
        yield f"demo {quoted or bare}", True


def wrong_in(line: str, *, named: bool) -> str | None:
    """Return what does not exist in a command line, or None.

    named: it begins with `piecework`. Other inline code counts only if it is a command of a group.
    """
    first, *rest = line.split()
    if first not in COMMANDS:
        return first if WORD.fullmatch(first) else None
    known = command(first)
    while rest and (below := getattr(known, "commands", None)):
        if rest[0] not in below:
            plain = WORD.fullmatch(rest[0]) is not None
            return f"{first} {rest[0]}" if plain and named else None
        known = below[rest.pop(0)]
    options = {name for p in known.params for name in (*p.opts, *p.secondary_opts)} | HELP
    for word in rest:
        option = OPTION.match(word)
        if option and word.startswith("-") and option[0] not in options:
            return f"{line.split(' -', maxsplit=1)[0]} {option[0]}"
    return None


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("`piecework gateway strat`", "gateway strat"),
        ("`market verify URL --fingerprnt ADDRESS`", "market verify URL --fingerprnt"),
        ('`make demo ARGS="--jobs 50 --concurency 8"`', "demo --concurency"),
        ("```sh\npiecework signer \\\n  init --payuot 0x\n```", "signer init --payuot"),
        ("`piecework marekt start`", "marekt"),
    ],
)
def test_a_name_that_does_not_exist_is_found(page: str, wrong: str) -> None:
    found = [wrong_in(line, named=named) for line, named in said_in(page)]
    assert [" ".join(text.split()) for text in found if text] == [wrong]


def test_every_command_and_option_that_a_page_names_exists() -> None:
    wrong, groups = [], set()
    for page in written_pages():
        if name_of(page) in HISTORY | {"CHANGELOG.md"} or "/adr/" in name_of(page):
            continue
        for line, named in said_in(page.read_text()):
            groups.add(line.split()[0])
            text = wrong_in(line, named=named)
            if text:
                wrong.append(f"{name_of(page)}: {text}")
    assert not wrong, "\n".join(wrong)
    assert set(COMMANDS) <= groups, f"no page names {set(COMMANDS) - groups}"
