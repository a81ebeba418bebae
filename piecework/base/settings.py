"""One loader for settings: a TOML file < environment variables < flags.

A model lists the settings, their types, bounds and descriptions. A name that the model does not
have is refused in every source, with the nearest right one: a mistyped limit must not vanish.
An error names every setting at fault, where it stands and what it may be. It never shows the
value of a secret, which is a field with `repr=False`.
"""

from __future__ import annotations

import os
import textwrap
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from piecework.base.environment import KNOWN, did_you_mean, is_service_link
from piecework.base.errors import SettingsError
from piecework.base.files import FileError, read, shown
from piecework.base.shapes import expected, is_list, is_wrong_number
from piecework.base.text import one_line

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_BRACKETS: Final = 500
"""Of lists and tables. A file with more could overrun the parser, which calls itself."""
MAX_TABLES: Final = 64
"""Of one list of tables."""
_MAX_SHOWN: Final = 60

M = TypeVar("M", bound="Settings")


class Settings(BaseModel):
    """The base of every model of settings: flat, closed, and fixed once loaded.

    A setting may be a tuple of another model: a list of tables in the file.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


@dataclass(frozen=True, slots=True)
class Variables:
    """Which environment variables a program reads.

    A setting `slots` is read from `prefix` + "SLOTS". `reserved` are names with the prefix that
    other parts read. `neighbours` are the prefixes of other programs of the family. `aliases` maps
    further variables to settings; the setting's own variable goes first.
    """

    prefix: str
    reserved: Collection[str] = ()
    neighbours: Collection[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def name_of(self, setting: str) -> str:
        """Return the variable that a setting is read from."""
        return self.prefix + setting.upper()


@dataclass
class _Found:
    """Values of the sources so far, where each stands, and what is wrong."""

    settable: tuple[Path | Variables, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seen: list[tuple[str, Any]] = field(default_factory=list)

    def places_for(self, name: str) -> str:
        """Where a setting that is missing could be set."""
        places = [
            place.name_of(name) if isinstance(place, Variables) else shown(place)
            for place in self.settable
        ]
        return f": set it in {' or '.join(places)}" if places else ""

    def take(self, name: str, value: Any, place: str) -> None:
        self.values[name], self.places[name] = value, place
        self.seen.append((name, value))


def load(
    model: type[M],
    variables: Variables,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> M:
    """Return the settings of a program. A file that is not there and a flag that is None give none.

    Raises:
        SettingsError: a source cannot be read, has a name that does not exist, or a value that
            cannot be used.
    """
    found = _Found((variables,) if file is None else (file, variables))
    if file is not None:
        _from_file(model, file, found)
    _from_environment(model, variables, os.environ if environment is None else environment, found)
    for name, value in (flags or {}).items():
        place = "--" + one_line(name, _MAX_SHOWN).replace("_", "-")
        if value is None:
            continue
        if name in model.model_fields:
            many = is_list(model.model_fields[name].annotation) and isinstance(value, str)
            found.take(name, _split(value) if many else value, place)
        else:
            near = did_you_mean(name, [f.replace("_", "-") for f in model.model_fields], "--")
            found.problems.append(f"there is no flag {place}{near}")
    return _checked(model, found)


def overriding(
    model: type[Settings],
    variables: Variables,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the values that environment and flags give, by setting. They go before a file's."""
    found = _Found()
    _from_environment(model, variables, os.environ if environment is None else environment, found)
    return {**found.values, **{name: value for name, value in flags.items() if value is not None}}


def check(model: type[M], values: Mapping[str, Any]) -> M:
    """Return settings from plain values.

    Raises:
        SettingsError: a name does not exist or a value cannot be used.
    """
    found = _Found()
    for name, value in values.items():
        if name in model.model_fields:
            found.take(name, value, name)
        else:
            near = did_you_mean(name, model.model_fields)
            found.problems.append(f"there is no setting {one_line(name, _MAX_SHOWN)}{near}")
    return _checked(model, found)


def change(model: type[M], file: Path, texts: Mapping[str, str], unset: Collection[str] = ()) -> M:
    """Return the settings of a file as they would be with others. The file stays as it is.

    Args:
        model: The settings.
        file: One that is not there has none.
        texts: New values by name, written as in the environment.
        unset: Names that go back to their defaults.

    Raises:
        SettingsError: a name does not exist, a value cannot be used, or the file cannot be.
    """
    found = _Found((file,))
    _from_file(model, file, found)
    for name in (*texts, *unset):
        if name not in model.model_fields:
            near = did_you_mean(name, model.model_fields)
            found.problems.append(f"there is no setting {one_line(name, _MAX_SHOWN)}{near}")
        elif name in unset:
            found.values.pop(name, None)
        else:
            found.take(name, _from_text(model, name, texts[name]), name)
    return _checked(model, found)


# --- sources


def _from_file(model: type[Settings], file: Path, found: _Found) -> None:
    try:
        text = read(file, MAX_FILE_BYTES).decode("utf-8-sig")  # editors on Windows write a mark
        if text.count("[") + text.count("{") > MAX_BRACKETS:
            raise SettingsError(f"{shown(file)} is nested too deep")
        values = tomllib.loads(text)
    except FileError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return
        raise SettingsError(str(error)) from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{shown(file)} is not UTF-8 text (byte {error.start})") from None
    except ValueError as error:  # tomllib's own error is one, and so is that of a huge number
        raise SettingsError(f"{shown(file)} is not TOML: {one_line(str(error), 200)}") from None
    for name, value in values.items():
        if name in model.model_fields:
            inner = tables_of(model, name)
            taken = value if inner is None else _tables(inner, name, value, shown(file), found)
            found.take(name, taken, f"{shown(file)}: {name}")
            continue
        hint = did_you_mean(name, model.model_fields)
        if isinstance(value, dict) and not hint:
            hint = ". Settings stand in no table"
        key = one_line(name, _MAX_SHOWN)
        found.problems.append(f"{shown(file)}: there is no setting {key}{hint}")


def tables_of(model: type[Settings], name: str) -> type[Settings] | None:
    """Return the model of each table, if a setting is a list of tables. Only a file has those."""
    return next(iter(_inner(model.model_fields[name].annotation)), None)


def _inner(annotation: Any) -> Iterator[type[Settings]]:
    for part in get_args(annotation):
        if isinstance(part, type) and issubclass(part, Settings):
            yield part


def _tables(
    inner: type[Settings], name: str, value: Any, file: str, found: _Found
) -> tuple[Settings, ...]:
    """Check each table by itself, so that an error names the setting in its table."""
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        found.problems.append(f"{file}: {name} is a list of tables, each begun by [[{name}]]")
        return ()
    made = []
    for place, table in enumerate(value[:MAX_TABLES], start=1):
        mine = _Found()
        for key, one in table.items():
            if key in inner.model_fields:
                mine.take(key, one, f"{file}: {name} {place}: {key}")
            else:
                near = did_you_mean(key, inner.model_fields)
                shown_key = one_line(key, _MAX_SHOWN)
                mine.problems.append(
                    f"{file}: {name} {place}: there is no setting {shown_key}{near}"
                )
        try:
            made.append(_checked(inner, mine))
        except SettingsError as error:
            found.problems += error.problems
    if len(value) > MAX_TABLES:
        found.problems.append(f"{file}: {name} has more than {MAX_TABLES} tables")
    return tuple(made)


def _from_environment(
    model: type[Settings], variables: Variables, environment: Mapping[str, str], found: _Found
) -> None:
    flat = [setting for setting in model.model_fields if tables_of(model, setting) is None]
    ours = {variables.name_of(setting): setting for setting in flat}
    for alias, setting in variables.aliases.items():
        if environment.get(alias):
            found.take(setting, _from_text(model, setting, environment[alias]), alias)
    for name, value in environment.items():
        if is_service_link(name.upper(), value):
            continue
        if name in ours:
            found.take(ours[name], _from_text(model, ours[name], value), name)
        elif not _is_known(name, variables) and _is_meant_for_us(name, variables, ours):
            near = did_you_mean(name.upper(), ours)
            found.problems.append(f"there is no variable {one_line(name, _MAX_SHOWN)}{near}")


def _is_known(name: str, variables: Variables) -> bool:
    return (
        name in KNOWN
        or name in variables.reserved
        or name in variables.aliases
        or any(name.startswith(prefix) for prefix in variables.neighbours)
    )


def _is_meant_for_us(name: str, variables: Variables, ours: Mapping[str, str]) -> bool:
    """Whether somebody meant a setting of ours: by its prefix, or by almost the whole name."""
    upper = name.upper()
    if upper.startswith(variables.prefix):
        return True
    family = variables.prefix.partition("_")[0] + "_"
    if upper.startswith(family):
        if any(upper.endswith(f"_{setting.upper()}") for setting in ours.values()):
            return True
        return bool(did_you_mean(upper, ours, cutoff=0.8))
    return bool(did_you_mean(upper, ours, cutoff=0.9))


def _from_text(model: type[Settings], setting: str, text: str) -> Any:
    return _split(text) if is_list(model.model_fields[setting].annotation) else text


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


# --- judgement


def _checked(model: type[M], found: _Found) -> M:
    problems = list(found.problems)
    values = dict(found.values)
    for name, value in found.values.items():
        if is_wrong_number(value, model.model_fields[name].annotation):
            problems.append(_wrong(model, found, name))
            del values[name]
    settings = None
    try:
        settings = model.model_validate(values)
    except ValidationError as error:
        # A union or a list may have several faults of one setting: the first says enough.
        faults: dict[str, Any] = {}
        for fault in error.errors(include_url=False, include_input=False):
            faults.setdefault(str(fault["loc"][0]) if fault["loc"] else "", fault)
        problems += [
            _problem(model, found, name, fault)
            for name, fault in faults.items()
            if name in values or name not in found.values  # the others are told above
        ]
    if problems or settings is None:
        raise SettingsError(*problems)
    return settings


def _problem(model: type[Settings], found: _Found, name: str, fault: Any) -> str:
    if fault["type"] == "missing":
        return f"{name} is not set{found.places_for(name)}"
    if fault["type"] not in ("value_error", "assertion_error"):
        return _wrong(model, found, name)
    text = str(fault["ctx"]["error"]) if "ctx" in fault else str(fault["msg"])
    if _shows_a_secret(model, found, text) or (name and not model.model_fields[name].repr):
        text = "this value cannot be used"
    text = one_line(text, 300)
    return f"{found.places.get(name, name)}: {text}" if name else text


def _wrong(model: type[Settings], found: _Found, name: str) -> str:
    info = model.model_fields[name]
    value = found.values.get(name)
    line = f"{found.places.get(name, name)} must be {expected(info.annotation, info.metadata)}"
    if info.repr and isinstance(value, str | int | float):
        line += f", not {one_line(_toml(value), _MAX_SHOWN)}"
    return line


def _shows_a_secret(model: type[Settings], found: _Found, text: str) -> bool:
    """Whether a validator's own text repeats a secret of any source."""
    secrets = {str(v) for name, v in found.seen if not model.model_fields[name].repr}
    return any(secret and secret in text for secret in secrets)


# --- writing and listing


def to_toml(model: type[Settings], values: Mapping[str, Any], *, rest: bool = False) -> str:
    """Return a TOML file of `values`, each below its description. A value that is None is left out.

    With `rest`, the settings that have no value follow as comments with their defaults.

    Raises:
        ValueError: a name does not exist, or a value has no form in TOML.
    """
    blocks: list[list[str]] = []
    tables: list[list[str]] = []
    for name, value in values.items():
        if name not in model.model_fields:
            raise ValueError(f"there is no setting {name}")
        if value is not None and tables_of(model, name) is not None:
            tables += [_table(name, one) for one in value]
        elif value is not None:
            blocks.append([*described(model, name), f"{name} = {_toml(value)}"])
    for name, info in model.model_fields.items() if rest else ():
        if values.get(name) is None and tables_of(model, name) is None:
            default = "" if info.is_required() or info.default is None else _toml(info.default)
            blocks.append([*described(model, name), f"# {name} = {default}".rstrip()])
    # In TOML a table goes on to the next one, so the settings outside of tables come first.
    return "\n\n".join("\n".join(block) for block in (*blocks, *tables)) + "\n"


def _table(name: str, settings: Settings) -> list[str]:
    given = settings.model_dump(exclude_unset=True)
    return [f"[[{name}]]", *(f"{key} = {_toml(value)}" for key, value in given.items())]


def described(model: type[Settings], name: str) -> list[str]:
    """Return the comment that stands above a setting in a file."""
    info = model.model_fields[name]
    text = one_line(info.description or "", 1000)
    about = expected(info.annotation, info.metadata)
    about = f"{about[:1].upper()}{about[1:]}."
    whole = f"{text.rstrip('.')}. {about}" if text else about
    return textwrap.wrap(whole, 98, initial_indent="# ", subsequent_indent="# ")


_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, str | Path):
        quoted = "".join(
            _ESCAPES.get(c, f"\\u{ord(c):04X}" if ord(c) < 0x20 or ord(c) == 0x7F else c)
            for c in str(value)
        )
        return f'"{quoted}"'
    raise ValueError(f"a {type(value).__name__} has no form in TOML")


@dataclass(frozen=True, slots=True)
class SettingDescription:
    """One setting, as a reference page shows it. `default` is TOML, "" if there is none."""

    name: str
    variable: str
    expected: str
    default: str
    required: bool
    secret: bool
    description: str


def describe(model: type[Settings], variables: Variables) -> tuple[SettingDescription, ...]:
    """Return every setting of a model, in the order of the model, without lists of tables."""
    listed = []
    for name, info in model.model_fields.items():
        if tables_of(model, name) is not None:
            continue
        default = info.get_default(call_default_factory=False)
        hidden = info.is_required() or default is None or not info.repr
        listed.append(
            SettingDescription(
                name=name,
                variable=variables.name_of(name),
                expected=expected(info.annotation, info.metadata),
                default="" if hidden else _toml(default),
                required=info.is_required(),
                secret=not info.repr,
                description=info.description or "",
            )
        )
    return tuple(listed)
