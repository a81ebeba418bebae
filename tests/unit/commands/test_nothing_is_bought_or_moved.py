"""Nothing is not a prompt to pay for, and zero is not an amount to move."""

from __future__ import annotations

import io
import sys

import pytest

from piecework.base.amounts import Token
from piecework.commands import _common as common
from piecework.commands import client

TOKEN = Token(None, "tUSDC", 6)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused_before_anything_is_paid(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        client._request(text, system=None)
    assert left.value.code == 2
    assert "the prompt is empty" in capsys.readouterr().err


def test_a_pipe_that_brings_nothing_is_an_empty_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(vars(sys), "stdin", io.StringIO(""))
    with pytest.raises(SystemExit):
        client._request("-", system=None)
    assert "the prompt is empty" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "0.000", ".0"])
def test_zero_is_not_an_amount_to_move(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        common.some_units(TOKEN, text)
    assert left.value.code == 2
    assert "the amount is 0 tUSDC" in capsys.readouterr().err


def test_the_smallest_amount_moves() -> None:
    assert common.some_units(TOKEN, "0.000001") == 1
