"""Where a role keeps its files."""

from __future__ import annotations

from pathlib import Path

from piecework.base.homes import default_home


def test_the_variable_names_the_folder_of_every_role() -> None:
    environment = {"PIECEWORK_HOME": "/srv/piecework"}
    assert default_home("client", environment) == Path("/srv/piecework/client")
    assert default_home("worker", environment) == Path("/srv/piecework/worker")


def test_without_the_variable_each_role_has_a_folder_of_the_users_data() -> None:
    for environment in ({}, {"PIECEWORK_HOME": ""}):
        home = default_home("client", environment)
        assert home.is_absolute() and home.parts[-2:] == ("piecework", "client")
