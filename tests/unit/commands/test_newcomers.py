"""Whoever mistypes something is told what to do next."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.commands._descriptor import fetch
from piecework.commands.worker import check
from piecework.demo.market import free_port

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("place", ["htp://a.example/m.json", "a.example/m.json", "http:/a.example"])
async def test_a_place_that_is_neither_a_url_nor_a_file_is_said_to_be_that(
    place: str, capsys: Captured
) -> None:
    with pytest.raises(SystemExit) as caught:
        await fetch(place)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said == f"error: {place} is not a file here, and a URL begins with https:// or http://\n"


async def test_a_url_that_nobody_answers_is_to_be_compared(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        await fetch(f"http://127.0.0.1:{free_port()}/market.json")
    said = capsys.readouterr().err
    assert "cannot reach 127.0.0.1" in said
    assert "Compare the URL with what the market publishes, and check the network here" in said


def test_a_check_without_a_home_says_how_to_make_one(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIECEWORK_PASSWORD", "a test password")
    with pytest.raises(SystemExit) as caught:
        check(home=tmp_path / "none")
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert said.out == "" and "no worker's home in " in said.err
    assert "Make one: piecework worker join URL, or piecework worker init" in said.err
