"""Changing settings in a TOML file: comments, order and everything else stay as they are."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from piecework.base.settings import Settings, SettingsError, described


def rewritten(
    model: type[Settings], text: str, values: Mapping[str, Any], unset: Collection[str] = ()
) -> str:
    """Return the text of a settings file with some values changed.

    A setting that is new in the file stands at its end, below its description.

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
        document = tomlkit.parse(text)
        for name in [name for name in document if name not in wanted]:
            document.remove(name)
        for name in (n for n in values if n in wanted):
            if name not in document:
                _begin(document, model, name)
            document[name] = wanted[name]
        changed = tomlkit.dumps(document)
        found = tomllib.loads(changed)
    except (TOMLKitError, ValueError, RecursionError) as error:
        raise SettingsError(f"the file cannot be changed by a program: {error}. Edit it") from None
    if found != wanted:
        raise SettingsError("the file cannot be changed by a program. Edit it")
    return changed


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
