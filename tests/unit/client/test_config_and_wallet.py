"""Configuration and keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.client.config import ClientHome, load_config
from piecework.client.errors import ConfigError, InsufficientFunds, WalletError, WorkerUnreachable
from piecework.client.jobs.channels import deposit_total
from piecework.client.network.transport import WorkerEndpoint
from piecework.client.wallet import create_key, open_key, open_wallet
from piecework.commands._terminal import printable
from piecework_protocol.types import Amount


def test_flags_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text('indexes = ["http://file"]\nresume_attempts = 1\njob_lifetime_s = 100\n')
    monkeypatch.setenv("PIECEWORK_CLIENT_RESUME_ATTEMPTS", "2")
    monkeypatch.setenv("PIECEWORK_CLIENT_JOB_LIFETIME_S", "200")
    config = load_config(file, {"job_lifetime_s": 300, "rpc_url": None})
    assert config.indexes == ("http://file",)
    assert (config.resume_attempts, config.job_lifetime_s) == (2, 300)


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("resume_attemps = 1\n")
    with pytest.raises(ConfigError, match="did you mean 'resume_attempts'"):
        load_config(file)


@pytest.mark.parametrize(
    "text", ["resume_attempts = -1", "deposit = 'much'", "indexes = 5", "not toml"]
)
def test_a_bad_value_is_one_clear_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_config(file)


def test_a_missing_file_means_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "none.toml").resume_attempts == 5


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
    with pytest.raises(WalletError, match="not be overwritten"):
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


@pytest.mark.parametrize(
    ("needed", "deposit", "free", "expected"),
    [
        (10, 0, 1000, 100),
        (110, 100, 1000, 200),
        (250, 100, 1000, 300),
        (10, 0, 60, 60),
        (10, 0, 10, 10),
    ],
)
def test_deposits_grow_in_whole_steps_as_far_as_the_balance_goes(
    needed: int, deposit: int, free: int, expected: int
) -> None:
    assert deposit_total(Amount(needed), Amount(deposit), Amount(free), Amount(100)) == expected


def test_a_shortage_beyond_the_balance_is_insufficient_funds() -> None:
    with pytest.raises(InsufficientFunds):
        deposit_total(Amount(11), Amount(0), Amount(10), Amount(100))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("a.example:7000", "dns:///a.example:7000"),
        ("grpcs://a.example:7000", "dns:///a.example:7000"),
        ("https://a.example:443/", "dns:///a.example:443"),
        ("[2001:db8::1]:7000", "dns:///[2001:db8::1]:7000"),
    ],
)
def test_endpoints_are_host_and_port(text: str, target: str) -> None:
    assert WorkerEndpoint.parse(text).target == target


@pytest.mark.parametrize(
    "text",
    ["", "a.example", "a:0", "a:99999", "a:x", "unix:///etc:1", "http://a:1", "user@a:1", "a b:1"],
)
def test_anything_else_is_no_endpoint(text: str) -> None:
    with pytest.raises(WorkerUnreachable):
        WorkerEndpoint.parse(text)


def test_a_worker_cannot_drive_the_terminal() -> None:
    assert printable("ok\n\tfine é 漢") == "ok\n\tfine é 漢"
    assert printable("\x1b[31mred\x07\r\x9b") == "\ufffd[31mred\ufffd\ufffd\ufffd"
