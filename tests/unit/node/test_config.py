"""Settings: where they come from, what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.base.amounts import Token
from piecework.base.errors import SettingsError
from piecework_node import config
from piecework_node.endpoints import split_endpoint
from piecework_node.engine.environment import child_environment
from piecework_node.worker_amounts import WorkerAmounts
from piecework_protocol.types import Address

USD = Token(b"\x11" * 20, "USD", 6)
PAYOUT = "0x" + "22" * 20


def home(folder: Path, text: str = "") -> Path:
    (folder / "config.toml").write_text(f'payout = "{PAYOUT}"\n{text}')
    return folder


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    place = home(tmp_path, "slots = 3\nqueue = 3\nthreads = 3\n")
    environment = {"PIECEWORK_WORKER_QUEUE": "5", "PIECEWORK_WORKER_THREADS": "5"}
    loaded = config.load(place, {"threads": 7, "bind": None}, environment)
    assert (loaded.slots, loaded.queue, loaded.threads) == (3, 5, 7)


def test_lists_come_from_the_environment_separated_by_commas(tmp_path: Path) -> None:
    environment = {"PIECEWORK_WORKER_INDEXES": "http://a, http://b"}
    assert config.load(home(tmp_path), {}, environment).indexes == ("http://a", "http://b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slot = 2", "Did you mean slots"),
        ("slots = 0", "slots"),
        ("slots = 'two'", "slots"),
        ("bind = 'nowhere'", "host:port"),
        ("indexes = ['ftp://x']", "http"),
        ("accepted_tokens = ['0x00']", "accepted_tokens"),
        ("admin_host = '0.0.0.0'", "admin_public"),
        ("min_withdrawal_delay_s = 60", "chain_outage_s"),
        ("offer_lifetime_s = 3601", "offer_lifetime_s"),
        ("slots = ", "config.toml"),
    ],
)
def test_a_bad_file_is_refused_by_the_name_of_the_setting(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        config.load(home(tmp_path, text), {}, {})


VLLM = "backend = 'vllm'\nmodel = '/models/one'\nvllm_endpoints = ['http://a:8000', 'https://b/base/']\n"


def test_vllm_is_chosen_with_its_endpoints_and_charges_no_steps(tmp_path: Path) -> None:
    loaded = config.load(home(tmp_path, VLLM), {}, {"PIECEWORK_WORKER_VLLM_API_KEY": "a long key"})
    assert (loaded.backend, len(loaded.vllm_endpoints)) == ("vllm", 2)
    assert loaded.amounts(USD).price_per_thousand_steps == 0
    assert "a long key" not in repr(loaded)
    ours = config.load(home(tmp_path), {}, {})
    assert (ours.backend, ours.amounts(USD).price_per_thousand_steps) == ("diffusion", 1_000)
    environment = {"PIECEWORK_WORKER_VLLM_ENDPOINTS": "http://c, http://d"}
    assert config.load(home(tmp_path, VLLM), {}, environment).vllm_endpoints == (
        "http://c",
        "http://d",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("backend = 'vllm'\nmodel = 'x'", "needs vllm_endpoints"),
        ("backend = 'vllm'\nvllm_endpoints = ['http://a']", "needs model"),
        ("vllm_endpoints = ['http://a']", 'set backend = "vllm"'),
        (VLLM + "price_per_thousand_steps = '0.001'", "must be 0 with vLLM"),
        ("backend = 'other'", "backend"),
        ("vllm_endpoints = ['ftp://a']", "plain http"),
        ("vllm_endpoints = ['http://']", "plain http"),
        ("vllm_endpoints = ['http://user:pass@a']", "plain http"),
        ("vllm_endpoints = ['http://a?key=1']", "plain http"),
        ("vllm_endpoints = ['http://a/v1/']", "without /v1"),
        ("vllm_endpoints = ['http://a', 'http://a/']", "given twice"),
    ],
)
def test_settings_of_vllm_that_cannot_be_meant_are_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        config.load(home(tmp_path, text), {}, {})


def amounts(folder: Path, text: str = "", token: Token = USD) -> WorkerAmounts:
    """The amounts of a home with these settings."""
    return config.load(home(folder, text), {}, {}).amounts(token)


def test_the_credit_of_a_new_client_follows_the_prices_until_it_is_set(tmp_path: Path) -> None:
    cheap = amounts(tmp_path).credit
    assert (cheap.first, cheap.mined) == (2_000, 25_000)
    dear = amounts(tmp_path, "price_per_million_output_tokens = '200.0'\n").credit
    canvas = 256 * 200 + 4096 * 50_000 // 10**6 + 48
    assert canvas <= dear.first <= canvas + 1
    assert dear.mined == dear.first and dear.most == 1_000_000
    assert dear.strangers == 8 * dear.first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("credit_first = '0.000303'", r'credit_first must be "0\.000304 USD" or more'),
        ("price_per_million_prompt_tokens = '1000 USD'\nopen_fee = '0.003'", "open_fee is less"),
        ("price_per_million_prompt_tokens = '1000 USD'\ncredit_max = '0.03'", "not go down"),
        (
            "price_per_million_prompt_tokens = '1000 USD'\nstranger_credit = '0.000009'",
            "stranger_credit",
        ),
    ],
)
def test_credit_with_which_nobody_new_could_begin_is_refused_with_the_least(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        amounts(tmp_path, text)


def test_best_effort_credit_counts_no_steps(tmp_path: Path) -> None:
    found = amounts(tmp_path, VLLM + "credit_first = '0.000257'\n")
    assert found.credit.first == found.least_first_credit + 1


def test_credit_that_is_not_set_fits_the_prices_in_any_token(tmp_path: Path) -> None:
    dai = Token(b"\x44" * 20, "DAI", 18)
    dear = "price_per_million_output_tokens = '1000 DAI'\n"
    found = amounts(tmp_path, dear, dai)
    assert found.credit.first == found.least_first_credit > dai.parse("0.002")
    assert found.credit.mined == found.credit.first
    assert found.credit.most == dai.parse("1")
    with pytest.raises(SettingsError, match="credit_first"):
        amounts(tmp_path, dear + "credit_first = '0.000000000000000005'\n", dai)


@pytest.mark.parametrize("name", config.AMOUNTS)
def test_an_amount_of_an_earlier_release_is_refused_with_the_right_one(
    tmp_path: Path, name: str
) -> None:
    """They were base units, a million times less than as many tokens."""
    place = home(tmp_path, f"{name} = 200_000\n")
    by_file = config.load(place, {}, {})
    by_variable = config.load(home(tmp_path), {}, {f"PIECEWORK_WORKER_{name.upper()}": "200000"})
    for loaded in (by_file, by_variable):
        with pytest.raises(SettingsError) as caught:
            loaded.amounts(USD)
        assert str(caught.value) == (
            f'{name}: 200000 has no unit. Write "200000 USD" if these are tokens, or "0.20 USD" if '
            "these are base units"
        )


def test_every_setting_of_money_is_an_amount() -> None:
    money = ("price", "fee", "credit", "deposit", "top_up")
    named = {n for n in config.WorkerConfig.model_fields if any(part in n for part in money)}
    assert named - {"max_fee_gwei", "automatic_prices"} == set(config.AMOUNTS)


def test_an_unknown_setting_in_the_environment_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Did you mean PIECEWORK_WORKER_PAYOUT"):
        config.load(home(tmp_path), {}, {"PIECEWORK_WORKER_PAYUOT": "x"})


def test_a_missing_payout_says_where_to_set_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="PIECEWORK_WORKER_PAYOUT"):
        config.load(tmp_path, {}, {})


def test_the_zero_address_cannot_be_paid(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="earnings would be lost"):
        config.load(tmp_path, {"payout": "0x" + "0" * 40}, {})


def test_a_mistyped_payout_is_caught_by_its_checksum(tmp_path: Path) -> None:
    bad = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD"
    with pytest.raises(SettingsError, match="checksum"):
        config.load(tmp_path, {"payout": bad}, {})


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    values = {"payout": PAYOUT, "slots": 3, "indexes": ("http://a",), "settle_gas_multiple": 2.5}
    (tmp_path / "config.toml").write_text(config.to_toml({**values, "admin_public": True}))
    loaded = config.load(tmp_path, {}, {})
    assert (loaded.slots, loaded.indexes, loaded.settle_gas_multiple) == (3, ("http://a",), 2.5)
    assert loaded.admin_public


def test_the_deployments_token_is_accepted_when_none_is_named(tmp_path: Path) -> None:
    default = Address(b"\x33" * 20)
    assert config.load(home(tmp_path), {}, {}).tokens(default) == (default,)


def test_the_engine_process_gets_no_password_and_no_network() -> None:
    kept = child_environment(
        {
            "PIECEWORK_PASSWORD": "x",
            "PIECEWORK_WORKER_SLOTS": "1",
            "HF_TOKEN": "hf_x",
            "PATH": "/bin",
        }
    )
    assert "HF_TOKEN" not in kept
    assert not any(name.startswith("PIECEWORK_") for name in kept)
    assert kept["PATH"] == "/bin"
    assert kept["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a:1", ("a", 1)), ("[::1]:0", ("::1", 0)), ("1.2.3.4:65535", ("1.2.3.4", 65535))],
)
def test_endpoints_are_split(text: str, parts: tuple[str, int]) -> None:
    assert split_endpoint(text) == parts


@pytest.mark.parametrize("text", ["a", ":1", "a:", "a:x", "a:65536", "a:-1"])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_endpoint(text)
