"""What is written as TOML reads back; a mistyped variable never passes."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.base.errors import SettingsError
from piecework.base.settings import Settings, Variables, load, to_toml


class Model(Settings):
    """Settings without bounds."""

    text: str = ""
    texts: tuple[str, ...] = ()
    number: int = 0
    fraction: float = 0.0
    truth: bool = False
    max_job_price: int | None = None


VARIABLES = Variables("PIECEWORK_CLIENT_")
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "text": UNICODE,
        "texts": st.lists(UNICODE, max_size=4).map(tuple),
        "number": st.integers(-(2**70), 2**70),
        "fraction": st.floats(allow_nan=False, allow_infinity=False),
        "truth": st.booleans(),
    },
)


@given(VALUES, st.booleans())
def test_toml_reads_back_as_what_was_written(values: dict[str, object], rest: bool) -> None:
    read = tomllib.loads(to_toml(Model, values, rest=rest))
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in read.items()} == values


NAME = "PIECEWORK_CLIENT_MAX_JOB_PRICE"
LETTERS = st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")


@st.composite
def mistyped(draw: st.DrawFn) -> str:
    """The name with one letter changed, dropped, doubled or swapped."""
    at = draw(st.integers(0, len(NAME) - 2))
    head, one, rest = NAME[:at], NAME[at], NAME[at + 1 :]
    changed = head + draw(LETTERS) + rest
    swapped = head + rest[0] + one + rest[1:]
    return draw(st.sampled_from([changed, head + rest, head + one + one + rest, swapped]))


@given(mistyped())
def test_a_variable_with_one_letter_wrong_is_refused(name: str) -> None:
    if name == NAME:
        return
    with pytest.raises(SettingsError, match=f"{name}. Did you mean {NAME}"):
        load(Model, VARIABLES, environment={name: "5"})


@given(st.dictionaries(st.text(max_size=40), st.text(max_size=20), max_size=5))
def test_any_environment_loads_or_is_one_line(environment: dict[str, str]) -> None:
    ours = {f"PIECEWORK_CLIENT_{name}": value for name, value in environment.items()}
    try:
        load(Model, VARIABLES, environment={**environment, **ours})
    except SettingsError as error:
        str(error).encode()
        assert "\n" not in str(error)
