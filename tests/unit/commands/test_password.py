"""A new key gets a password. An old one opens with whatever it was made with."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.commands._common import password


def test_a_new_key_with_an_empty_password_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIECEWORK_PASSWORD", "")
    with pytest.raises(SystemExit) as caught:
        password(None, confirm=True)
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("error: the password is empty")
    monkeypatch.delenv("PIECEWORK_PASSWORD")
    (tmp_path / "file").write_text("\n")
    with pytest.raises(SystemExit):
        password(tmp_path / "file", confirm=True)


def test_a_key_that_is_there_may_have_an_empty_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIECEWORK_PASSWORD", "")
    assert password(None) == ""
