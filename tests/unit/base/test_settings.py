"""The loader of settings: precedence, refused names, plain errors, no secret shown."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, field_validator, model_validator

from piecework.base.errors import SettingsError
from piecework.base.settings import Settings, Variables, check, describe, load, to_toml

Units = Annotated[int, Field(ge=0, lt=1 << 96)]
VARIABLES = Variables(
    "PIECEWORK_CLIENT_",
    reserved=("PIECEWORK_CLIENT_HOME", "PIECEWORK_PASSWORD"),
    neighbours=("PIECEWORK_WORKER_",),
    aliases={"PIECEWORK_INDEXES": "indexes"},
)


class Client(Settings):
    """A model with one setting of each form."""

    payout: str = Field("0x01", min_length=4, description="Receiver of all earnings.")
    indexes: tuple[str, ...] = Field((), max_length=3, description="Index URLs.")
    ports: tuple[int, ...] = ()
    max_job_price: Units | None = Field(None, description="No job may cost more than this.")
    slots: int = Field(2, ge=1, le=256)
    timeout_s: float = Field(10.0, gt=0, le=120)
    keep_text: bool = False
    backend: Literal["diffusion", "vllm"] = "diffusion"
    folder: Path = Path("/var")
    api_key: str | None = Field(None, min_length=8, max_length=20, repr=False)

    @field_validator("indexes")
    @classmethod
    def _http(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not url.startswith("http"):
                raise ValueError("an index is an http:// or https:// address")
        return value

    @field_validator("api_key")
    @classmethod
    def _key(cls, value: str | None) -> str | None:
        if value is not None and " " in value:
            raise ValueError(f"{value} has a space")
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.slots == 7 and self.keep_text:
            raise ValueError(f"seven slots keep no text, not even {self.api_key}")
        return self


DEFAULTS = Client.model_validate({})


class Required(Settings):
    """A model with a setting that has no default."""

    payout: str
    slots: int = 2


def config(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "config.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def loaded(
    file: Path | None = None, environment: dict[str, str] | None = None, **flags: Any
) -> Client:
    return load(Client, VARIABLES, file=file, environment=environment or {}, flags=flags)


def problems(
    file: Path | None = None, environment: dict[str, str] | None = None, **flags: Any
) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        loaded(file, environment, **flags)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value.problems


def test_a_flag_beats_a_variable_and_a_variable_the_file(tmp_path: Path) -> None:
    file = config(tmp_path, "slots = 3\ntimeout_s = 3\npayout = 'file'\n")
    settings = loaded(
        file,
        {"PIECEWORK_CLIENT_SLOTS": "4", "PIECEWORK_CLIENT_TIMEOUT_S": "4"},
        slots=5,
        timeout_s=None,
    )
    assert (settings.slots, settings.timeout_s, settings.payout) == (5, 4.0, "file")


def test_a_file_that_is_not_there_gives_nothing(tmp_path: Path) -> None:
    assert loaded(tmp_path / "none.toml") == DEFAULTS


def test_lists_in_the_environment_are_separated_by_commas() -> None:
    environment = {
        "PIECEWORK_CLIENT_INDEXES": " http://a, http://b ,,",
        "PIECEWORK_CLIENT_PORTS": "1,2",
    }
    settings = loaded(environment=environment)
    assert settings.indexes == ("http://a", "http://b")
    assert settings.ports == (1, 2)
    assert loaded(environment={"PIECEWORK_CLIENT_INDEXES": ""}).indexes == ()


def test_a_list_flag_may_be_one_text_or_many() -> None:
    assert loaded(indexes="http://a,http://b").indexes == ("http://a", "http://b")
    assert loaded(indexes=["http://a"]).indexes == ("http://a",)


def test_an_alias_counts_less_than_the_own_variable() -> None:
    assert loaded(environment={"PIECEWORK_INDEXES": "http://a"}).indexes == ("http://a",)
    both = {"PIECEWORK_CLIENT_INDEXES": "http://b", "PIECEWORK_INDEXES": "http://a"}
    assert loaded(environment=both).indexes == ("http://b",)
    assert problems(environment={"PIECEWORK_INDEXES": "ftp:"})[0].startswith("PIECEWORK_INDEXES: ")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PIECEWORK_CLIENT_MAX_JOB_PRISE", "PIECEWORK_CLIENT_MAX_JOB_PRICE"),
        ("PIECEWORK_CLIENT_MAXJOBPRICE", "PIECEWORK_CLIENT_MAX_JOB_PRICE"),
        ("PIECEWORK_CLEINT_MAX_JOB_PRICE", "PIECEWORK_CLIENT_MAX_JOB_PRICE"),
        ("PIECEWORK_MAX_JOB_PRICE", "PIECEWORK_CLIENT_MAX_JOB_PRICE"),
        ("PIECEWORK_CLIENT__MAX_JOB_PRICE", "PIECEWORK_CLIENT_MAX_JOB_PRICE"),
        ("piecework_client_max_job_price", "PIECEWORK_CLIENT_MAX_JOB_PRICE"),
        ("PIECEWORK_CLIENT_max_job_price", "PIECEWORK_CLIENT_MAX_JOB_PRICE"),
        ("PIECEWRK_CLIENT_MAX_JOB_PRICE", "PIECEWORK_CLIENT_MAX_JOB_PRICE"),
        ("PIECEWORK_GATEWAY_SLOTS", "PIECEWORK_CLIENT_SLOTS"),
        ("PIECEWORK_CLIENT_SLOT", "PIECEWORK_CLIENT_SLOTS"),
    ],
)
def test_a_mistyped_variable_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    assert problems(environment={name: "5"}) == (
        f"there is no variable {name}. Did you mean {nearest}?",
    )


@pytest.mark.parametrize("name", ["PIECEWORK_CLIENT_", "PIECEWORK_CLIENT_ZZZ"])
def test_a_variable_with_our_prefix_and_no_neighbour_is_refused(name: str) -> None:
    assert problems(environment={name: "5"})[0].startswith(f"there is no variable {name}")


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "PIECEWORK_PASSWORD",
        "PIECEWORK_CLIENT_HOME",
        "PIECEWORK_WORKER_SLOTS",
        "PIECEWORK_VERSION",
        "PIECEWORK_CLIENT_SERVICE_HOST",
        "PIECEWORK_CLIENT_SERVICE_PORT_HTTP",
        "PIECEWORK_CLIENT_0_SERVICE_HOST",
        "PIECEWORK_CLIENT_GATEWAY_PORT_80_TCP_ADDR",
        "PIECEWORK_CLIENT_PORT_80_TCP_ADDR",
        "MAX_JOB_PRICE",
    ],
)
def test_a_variable_of_somebody_else_is_left_alone(name: str) -> None:
    assert loaded(environment={name: "5"}) == DEFAULTS


@pytest.mark.parametrize("name", ["PIECEWORK_CLIENT_PORT", "PIECEWORK_CLIENT_GATEWAY_PORT"])
def test_the_address_of_a_linked_service_is_left_alone(name: str) -> None:
    assert loaded(environment={name: "tcp://10.0.0.1:8000"}) == DEFAULTS


def test_an_unknown_name_in_the_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    file = config(tmp_path, "max_job_prise = 5\nzzz = 1\n[client]\nslots = 3\n")
    assert problems(file) == (
        f"{file}: there is no setting max_job_prise. Did you mean max_job_price?",
        f"{file}: there is no setting zzz",
        f"{file}: there is no setting client. Settings stand in no table",
    )


def test_an_unknown_flag_is_refused_with_the_nearest() -> None:
    assert problems(max_job_prise=5) == (
        "there is no flag --max-job-prise. Did you mean --max-job-price?",
    )


def test_a_strange_name_cannot_drive_the_terminal(tmp_path: Path) -> None:
    file = config(tmp_path, '"\\u001b[2J\\n" = 5\n')
    assert problems(file) == (f"{file}: there is no setting [2J",)


def test_every_setting_at_fault_is_named_with_its_place_and_its_bound(tmp_path: Path) -> None:
    file = config(tmp_path, 'slots = 0\nindexes = "http://a"\nbackend = "gpu"\nzzz = 1\n')
    environment = {
        "PIECEWORK_CLIENT_MAX_JOB_PRICE": "-1",
        "PIECEWORK_CLIENT_KEEP_TEXT": "perhaps",
        "PIECEWORK_CLIENT_PORTS": "80,http",
    }
    assert set(problems(file, environment, timeout_s=0, payout="0x")) == {
        f"{file}: there is no setting zzz",
        f"{file}: slots must be a whole number from 1 to 256, not 0",
        f'{file}: indexes must be a list of texts (at most 3 of them), not "http://a"',
        f'{file}: backend must be one of diffusion, vllm, not "gpu"',
        'PIECEWORK_CLIENT_MAX_JOB_PRICE must be a whole number at least 0 and below 2^96, not "-1"',
        'PIECEWORK_CLIENT_KEEP_TEXT must be true or false, not "perhaps"',
        "PIECEWORK_CLIENT_PORTS must be a list of whole numbers",
        "--timeout-s must be a number above 0 and at most 120, not 0",
        '--payout must be a text (at least 4 characters), not "0x"',
    }


@pytest.mark.parametrize(
    "line",
    [
        "max_job_price = true",
        "max_job_price = 1e23",
        "max_job_price = 5.0",
        "max_job_price = 5.5",
        'max_job_price = ""',
        "max_job_price = []",
        "max_job_price = {}",
        "max_job_price = 1979-05-27",
        "timeout_s = nan",
        "timeout_s = inf",
        "timeout_s = true",
        "ports = [true]",
        "ports = [[1]]",
        "payout = 12345",
        "slots = 99999999999999999999999999",
        'indexes = ["a", "b", "c", "d"]',
    ],
)
def test_a_value_of_another_kind_is_refused_in_plain_words(tmp_path: Path, line: str) -> None:
    name = line.partition(" ")[0]
    (problem,) = problems(config(tmp_path, line))
    assert problem.startswith(f"{tmp_path}/config.toml: {name} must be a ")
    assert "Input" not in problem and "tuple" not in problem


def test_an_empty_variable_does_not_lift_a_limit() -> None:
    (problem,) = problems(environment={"PIECEWORK_CLIENT_MAX_JOB_PRICE": ""})
    assert problem.endswith('must be a whole number at least 0 and below 2^96, not ""')


def test_a_missing_setting_says_where_to_set_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    with pytest.raises(SettingsError) as caught:
        load(Required, Variables("X_"), file=file, environment={})
    assert str(caught.value) == f"payout is not set: set it in {file} or X_PAYOUT"
    with pytest.raises(SettingsError, match=r"^payout is not set$"):
        check(Required, {})


def test_what_a_validator_says_is_told_with_the_place() -> None:
    assert problems(environment={"PIECEWORK_CLIENT_INDEXES": "ftp://a"}) == (
        "PIECEWORK_CLIENT_INDEXES: an index is an http:// or https:// address",
    )
    assert problems(slots=7, keep_text=True) == ("seven slots keep no text, not even None",)


@pytest.mark.parametrize("secret", ["short", "s" * 30, "secret key", "sec\x1b[2Jret"])
def test_a_secret_is_never_shown(tmp_path: Path, secret: str) -> None:
    for lines in (
        problems(api_key=secret, slots=0),
        problems(environment={"PIECEWORK_CLIENT_API_KEY": secret, "PIECEWORK_CLIENT_SLOTS": "0"}),
        problems(config(tmp_path, to_toml(Client, {"api_key": secret, "slots": 0}))),
    ):
        assert any("slots" in line.lower() for line in lines)
        assert not any(secret in line or "[2J" in line for line in lines)


def test_a_validator_that_repeats_a_secret_is_not_quoted() -> None:
    assert problems(slots=7, keep_text=True, api_key="secret-key") == ("this value cannot be used",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"slots = ", "is not TOML: Invalid value (at end of document)"),
        (b"slots = 1\nslots = 2", "is not TOML: Cannot overwrite a value"),
        (b"x = " + b"[" * 5000, "is nested too deep"),
        (b"slots = " + b"9" * 5000, "is not TOML: "),
        (b"payout = 'caf\xe9'", "is not UTF-8 text (byte 13)"),
        (b"#" * (1024 * 1024 + 1), "is larger than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (problem,) = problems(config(tmp_path, content))
    assert f"{tmp_path}/config.toml {says}" in problem


def test_a_folder_in_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    assert problems(tmp_path) == (f"cannot read {tmp_path}: is a directory",)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert loaded(config(tmp_path, b"\xef\xbb\xbfslots = 3\r\n")).slots == 3


def test_plain_values_are_checked_the_same_way() -> None:
    assert check(Client, {"slots": 3}).slots == 3
    with pytest.raises(SettingsError) as caught:
        check(Client, {"slots": 0, "slotss": 1})
    assert caught.value.problems == (
        "there is no setting slotss. Did you mean slots?",
        "slots must be a whole number from 1 to 256, not 0",
    )


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    values = {
        "payout": 'a "quoted" \\ text\n\t\x7f\x00 with 🍣 and €',
        "indexes": ("http://a", "http://b"),
        "timeout_s": 1e-05,
        "keep_text": True,
        "folder": Path("/var/lib"),
        "max_job_price": None,
        "slots": 3,
    }
    text = to_toml(Client, values, rest=True)
    assert max(map(len, text.splitlines())) <= 100
    settings = loaded(config(tmp_path, text))
    kept = {name: value for name, value in values.items() if value is not None}
    assert settings.model_dump(exclude_unset=True) == kept


def test_a_written_file_explains_each_setting() -> None:
    assert to_toml(Client, {"payout": "0x02"}) == (
        '# Receiver of all earnings. A text (at least 4 characters).\npayout = "0x02"\n'
    )
    text = to_toml(Client, {"payout": "0x02"}, rest=True)
    assert "# A whole number from 1 to 256.\n# slots = 2\n" in text
    assert "# No job may cost more than this. A whole number at least 0 and below 2^96.\n" in text
    assert "# max_job_price =\n" in text
    assert tomllib.loads(text) == {"payout": "0x02"}


def test_what_has_no_form_in_toml_is_refused() -> None:
    with pytest.raises(ValueError, match="no setting slotss"):
        to_toml(Client, {"slotss": 1})
    with pytest.raises(ValueError, match="no form in TOML"):
        to_toml(Client, {"payout": b"bytes"})


def test_the_listing_has_what_a_reference_page_needs() -> None:
    listed = {d.name: d for d in describe(Client, VARIABLES)}
    assert list(listed) == list(Client.model_fields)
    slots = listed["slots"]
    assert (slots.variable, slots.expected, slots.default) == (
        "PIECEWORK_CLIENT_SLOTS",
        "a whole number from 1 to 256",
        "2",
    )
    assert listed["indexes"].default == "[]"
    assert listed["max_job_price"].default == ""
    assert listed["api_key"].secret and not listed["slots"].secret
    assert [d.required for d in describe(Required, VARIABLES)] == [True, False]


def test_settings_are_fixed_once_loaded() -> None:
    with pytest.raises(ValueError, match="frozen"):
        DEFAULTS.slots = 5
