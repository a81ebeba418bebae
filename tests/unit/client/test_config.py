"""Settings of a client, and amounts in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.base.amounts import Token
from piecework.base.errors import SettingsError
from piecework.base.settings import describe, to_toml
from piecework.client.config import VARIABLES, ClientConfig, load_config

USD = Token(b"\x01" * 20, "tUSDC", 6)
GUSD = Token(b"\x02" * 20, "GUSD", 2)
DAI = Token(b"\x03" * 20, "DAI", 18)


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('indexes = ["http://file"]\nresume_attempts = 1\njob_lifetime_s = 100\n')
    environment = {
        "PIECEWORK_CLIENT_RESUME_ATTEMPTS": "2",
        "PIECEWORK_CLIENT_JOB_LIFETIME_S": "200",
    }
    config = load_config(file, {"job_lifetime_s": 300, "rpc_url": None}, environment)
    assert config.indexes == ("http://file",)
    assert (config.resume_attempts, config.job_lifetime_s) == (2, 300)


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("resume_attemps = 1\n")
    with pytest.raises(SettingsError, match=r"Did you mean resume_attempts\?"):
        load_config(file, environment={})


def test_a_mistyped_spending_limit_in_the_environment_is_refused(tmp_path: Path) -> None:
    typo = {"PIECEWORK_CLIENT_MAX_JOB_PRISE": "5"}
    with pytest.raises(SettingsError, match=r"Did you mean PIECEWORK_CLIENT_MAX_JOB_PRICE\?"):
        load_config(tmp_path / "none.toml", environment=typo)


def test_variables_of_other_roles_are_left_alone(tmp_path: Path) -> None:
    others = {
        "PIECEWORK_HOME": "/srv",
        "PIECEWORK_PASSWORD": "secret",
        "PIECEWORK_WORKER_INDEXES": "http://index",
        "PIECEWORK_WORKER_RPC_URL": "http://chain",
    }
    assert load_config(tmp_path / "none.toml", environment=others) == ClientConfig()


@pytest.mark.parametrize(
    "text",
    [
        "resume_attempts = -1",
        'deposit = "much"',
        "deposit = 1.5",
        'max_job_price = "-1"',
        'max_job_price = ""',
        "indexes = 5",
        "not toml",
    ],
)
def test_a_bad_value_is_one_clear_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_config(file, environment={})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("written", ["5", '"5"', "1000000"])
def test_an_amount_without_its_unit_is_refused_with_both_readings(
    tmp_path: Path, written: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"max_job_price = {written}\n")
    config = load_config(file, environment={})
    number = written.strip('"')
    with pytest.raises(SettingsError) as caught:
        config.amounts(USD)
    assert f'"{number} {USD.symbol}" if these are tokens' in str(caught.value)
    assert f'"{USD.write(int(number))}" if these are base units' in str(caught.value)


def test_a_missing_file_means_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "none.toml", environment={}).resume_attempts == 5


@pytest.mark.parametrize(
    ("token", "deposit", "second"), [(USD, 10**6, 50), (GUSD, 10**2, 0.005), (DAI, 10**18, 5e13)]
)
def test_the_defaults_are_worth_the_same_in_every_token(
    token: Token, deposit: int, second: float
) -> None:
    amounts = ClientConfig().amounts(token)
    assert amounts.deposit == deposit
    assert amounts.second_is_worth == pytest.approx(second)
    assert amounts.max_job_price is None


def test_an_amount_below_a_base_unit_names_its_setting() -> None:
    config = ClientConfig(max_job_price="0.001")
    assert config.amounts(USD).max_job_price == 1000
    with pytest.raises(SettingsError, match=r"max_job_price: .*GUSD has 2 decimals"):
        config.amounts(GUSD)


def test_every_setting_is_described_and_written_with_its_default(tmp_path: Path) -> None:
    assert all(setting.description for setting in describe(ClientConfig, VARIABLES))
    file = tmp_path / "config.toml"
    text = to_toml(ClientConfig, {"indexes": ("http://index",)}, rest=True)
    file.write_text(text)
    assert load_config(file, environment={}) == ClientConfig(indexes=("http://index",))
    for name in ClientConfig.model_fields:
        assert f"\n{name} = " in f"\n{text}" or f"\n# {name} =" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('rpc_urls = ["http://a", "http://b"]\nrpc_quorum = 3\n', "rpc_quorum is more"),
        ('rpc_urls = ["http://a"]\nrpc_url = "http://b"\n', "not both"),
        ('rpc_urls = ["ws://a"]\n', "http://"),
        ('rpc_urls = ["http://a", "http://a/"]\n', "twice"),
    ],
)
def test_nodes_that_cannot_agree_are_refused(tmp_path: Path, settings: str, message: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(settings)
    with pytest.raises(SettingsError, match=message):
        load_config(file, environment={})


def test_several_nodes_of_the_chain_are_set_as_at_the_worker(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('rpc_urls = ["http://a", "http://b", "http://c"]\nrpc_quorum = 2\n')
    config = load_config(file, environment={})
    assert config.rpc_urls == ("http://a", "http://b", "http://c") and config.rpc_quorum == 2
