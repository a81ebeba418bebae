"""The client's keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.client.config import ClientHome
from piecework.client.errors import WalletError
from piecework.client.wallet import create_key, open_key, open_wallet

pytestmark = pytest.mark.slow  # a key of a password is meant to take its time


def test_a_key_opens_with_its_password_only_and_is_never_overwritten(tmp_path: Path) -> None:
    home = ClientHome(tmp_path / "home")
    home.create()
    made = create_key(home.wallet, "right")
    assert home.wallet.stat().st_mode & 0o777 == 0o600
    assert home.path.stat().st_mode & 0o777 == 0o700
    assert open_key(home.wallet, "right").address == made.address
    assert made.secret.hex() not in home.wallet.read_text()
    with pytest.raises(WalletError, match="password"):
        open_key(home.wallet, "wrong")
    with pytest.raises(WalletError, match="not overwritten"):
        create_key(home.wallet, "right")


def test_one_key_is_payer_and_authorizer_unless_there_is_a_second(tmp_path: Path) -> None:
    home = ClientHome(tmp_path)
    create_key(home.wallet, "p", bytes([1] * 32))
    wallet = open_wallet(home.wallet, home.authorizer, "p")
    assert wallet.payer is wallet.authorizer
    create_key(home.authorizer, "p", bytes([2] * 32))
    wallet = open_wallet(home.wallet, home.authorizer, "p")
    assert wallet.payer.address != wallet.authorizer.address


def test_a_file_that_is_no_keystore_is_said(tmp_path: Path) -> None:
    file = tmp_path / "wallet.json"
    with pytest.raises(WalletError, match="piecework client init"):
        open_key(file, "p")
    for text in ("", "{}", "[1]", '{"version": 3}'):
        file.write_text(text)
        with pytest.raises(WalletError):
            open_key(file, "p")
