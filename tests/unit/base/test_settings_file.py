"""Settings change in a file, and everything else in it stays."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from piecework.base.errors import SettingsError
from piecework.base.settings import Settings, change, to_toml
from piecework.base.settings_file import rewritten


class Shop(Settings):
    name: str = ""
    slots: int = Field(2, ge=1, le=9, description="jobs at once")
    share: float = 0.5
    open: bool = False
    places: tuple[str, ...] = ()
    key: str = Field("", repr=False)


WRITTEN = """\
# my shop

slots = 3  # more would be loud
# the name that people see
name = "Old"
places = [
  "here",
  "there",
]
# the end"""


def test_a_value_changes_and_every_comment_stays() -> None:
    text = rewritten(Shop, WRITTEN, {"slots": 5, "name": "New"})
    assert text == WRITTEN.replace("slots = 3", "slots = 5").replace('"Old"', '"New"')


def test_a_new_setting_stands_at_the_end_below_its_description() -> None:
    text = rewritten(Shop, "open = true", {"slots": 5})
    assert text == ("open = true\n\n# jobs at once. A whole number from 1 to 9.\nslots = 5\n")
    assert rewritten(Shop, "", {"open": True}) == "# True or false.\nopen = true\n"


TABLES = """\
slots = 3
places = [
["here", "[[not a table]]"],
]

# ours
[[shops]]
slots = 4
"""


def test_a_new_setting_stands_before_the_tables_of_a_file() -> None:
    text = rewritten(Shop, TABLES, {"slots": 5, "open": True})
    table = text.partition("# ours\n")[2]
    assert tomllib.loads(text) == {
        "slots": 5,
        "places": [["here", "[[not a table]]"]],
        "open": True,
        "shops": [{"slots": 4}],
    }
    assert table == "[[shops]]\nslots = 4\n"
    only = rewritten(Shop, "[[shops]]\nslots = 4\n", {"slots": 5})
    assert tomllib.loads(only) == {"slots": 5, "shops": [{"slots": 4}]}
    with pytest.raises(SettingsError, match="Edit it"):
        rewritten(Shop, TABLES, {}, ["shops"])


def test_a_setting_goes_back_to_its_default_by_leaving_the_file() -> None:
    text = rewritten(Shop, WRITTEN, {}, ["slots", "places", "share"])
    assert tomllib.loads(text) == {"name": "Old"}
    assert text.startswith("# my shop\n") and text.endswith("# the end")


@given(
    before=st.fixed_dictionaries(
        {},
        optional={
            "name": st.text(max_size=20),
            "slots": st.integers(1, 9),
            "share": st.floats(allow_nan=False, allow_infinity=False),
            "open": st.booleans(),
            "places": st.lists(st.text(max_size=5), max_size=3).map(tuple),
        },
    ),
    after=st.fixed_dictionaries(
        {},
        optional={
            "name": st.text(max_size=20),
            "slots": st.integers(1, 9),
            "places": st.lists(st.text(max_size=5), max_size=3).map(tuple),
        },
    ),
    unset=st.lists(st.sampled_from(["share", "open"]), max_size=2),
)
def test_what_is_read_back_is_the_old_with_the_change(
    before: dict[str, Any], after: dict[str, Any], unset: list[str]
) -> None:
    text = rewritten(Shop, to_toml(Shop, before), after, unset)
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in {**before, **after}.items()}
    assert tomllib.loads(text) == {k: v for k, v in listed.items() if k not in unset}


@pytest.mark.parametrize(
    ("texts", "unset", "said"),
    [
        ({"slotss": "3"}, (), "there is no setting slotss. Did you mean slots?"),
        ({}, ("nmae",), "there is no setting nmae. Did you mean name?"),
        ({"slots": "12"}, (), 'slots must be a whole number from 1 to 9, not "12"'),
        ({"open": "maybe"}, (), 'open must be true or false, not "maybe"'),
    ],
)
def test_a_change_that_no_start_would_take_is_refused_by_name(
    tmp_path: Path, texts: dict[str, str], unset: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "shop.toml"
    file.write_text(WRITTEN)
    with pytest.raises(SettingsError) as caught:
        change(Shop, file, texts, unset)
    assert str(caught.value) == said
    assert file.read_text() == WRITTEN


def test_a_changed_setting_is_read_as_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "shop.toml"
    file.write_text(WRITTEN)
    after = change(Shop, file, {"places": "a, b", "slots": "9"}, ["name"])
    assert (after.places, after.slots, after.name) == (("a", "b"), 9, "")
