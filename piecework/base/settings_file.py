"""Changing settings in a TOML file: comments, order and everything else stay as they are."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from piecework.base.errors import SettingsError
from piecework.base.settings import Settings, described


def rewritten(
    model: type[Settings], text: str, values: Mapping[str, Any], unset: Collection[str] = ()
) -> str:
    """Return the text of a settings file with some values changed.

    A setting that is new in the file stands at its end, below its description, and before its
    tables. In TOML what stands behind the head of a table belongs to the table.

    Args:
        model: The settings.
        text: A file that `settings.load` has taken.
        values: By name. None removes the setting, as `unset` does.
        unset: Names to remove. What stands around them stays.

    Raises:
        SettingsError: the file cannot be changed by a program.
    """
    wanted = {**tomllib.loads(text), **{name: _plain(value) for name, value in values.items()}}
    for name in (*unset, *(n for n, value in values.items() if value is None)):
        wanted.pop(name, None)
    try:
        head, tables = _split(text)
        document = tomlkit.parse(head)
        for name in [name for name in document if name not in wanted]:
            document.remove(name)
        for name in (n for n in values if n in wanted):
            if name not in document:
                _begin(document, model, name)
            document[name] = wanted[name]
        changed = _joined(tomlkit.dumps(document), tables)
        found = tomllib.loads(changed)
    except (TOMLKitError, ValueError, RecursionError) as error:
        raise SettingsError(f"the file cannot be changed by a program: {error}. Edit it") from None
    if found != wanted:
        raise SettingsError("the file cannot be changed by a program. Edit it")
    return changed


def _split(text: str) -> tuple[str, str]:
    """Divide a file before its first table, and the comment on top of that."""
    lines = text.splitlines(keepends=True)
    for place, line in enumerate(lines):
        if not line.lstrip().startswith("["):
            continue
        above = place
        while above and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        for cut in (above, place):
            head = "".join(lines[:cut])
            if _is_whole(head):  # otherwise the line is a part of a list or a text
                return head, "".join(lines[cut:])
    return text, ""


def _is_whole(text: str) -> bool:
    try:
        tomllib.loads(text)
    except ValueError:
        return False
    return True


def _joined(head: str, tables: str) -> str:
    if not head.strip() or not tables or head.endswith("\n\n"):
        return head + tables
    return head + ("\n" if head.endswith("\n") else "\n\n") + tables


def _begin(document: tomlkit.TOMLDocument, model: type[Settings], name: str) -> None:
    """Write the description of a setting at the end of a file."""
    if document.as_string().strip():
        if not document.as_string().endswith("\n"):
            document.add(tomlkit.nl())
        document.add(tomlkit.nl())
    for line in described(model, name):
        document.add(tomlkit.comment(line.removeprefix("# ")))


def _plain(value: Any) -> Any:
    """A value as TOML has it."""
    return list(value) if isinstance(value, tuple | set | frozenset) else value
