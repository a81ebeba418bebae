"""The client's configuration: config.toml in its home < PIECEWORK_CLIENT_* < flags.

The only place of the client that reads the environment. An unknown key is refused with the nearest
name.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from piecework.client.errors import ConfigError

BaseUnits = Annotated[int, Field(ge=0, lt=1 << 96)]


@dataclass(frozen=True, slots=True)
class ClientHome:
    """The files of one client. The directory is 0700 and every file in it 0600."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def deployment(self) -> Path:
        return self.path / "deployment.json"

    @property
    def wallet(self) -> Path:
        return self.path / "wallet.json"

    @property
    def authorizer(self) -> Path:
        return self.path / "authorizer.json"

    @property
    def store(self) -> Path:
        return self.path / "client.db"

    def create(self) -> None:
        """Make the directory, closed to others."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)


class ClientConfig(BaseSettings):
    """Everything a client can be told. Amounts are base units of the token, times are seconds."""

    model_config = SettingsConfigDict(env_prefix="PIECEWORK_CLIENT_", extra="forbid", frozen=True)

    indexes: tuple[str, ...] = Field(
        default=(),
        max_length=16,
        description="Index URLs; none: ask the workers in the registry themselves.",
    )
    rpc_url: str | None = Field(
        default=None, description="Instead of the deployment's RPC endpoint."
    )
    rpc_timeout_s: float = Field(default=10.0, gt=0, le=120)

    deposit: BaseUnits = Field(
        default=1_000_000,
        description="What a channel is opened or topped up with, if the balance allows.",
    )
    withdrawal_delay_s: int = Field(
        default=0,
        ge=0,
        le=30 * 86400,
        description="Longer than the worker asks for: more choice, slower exit.",
    )
    funding_lifetime_s: int = Field(
        default=3600,
        ge=60,
        le=86400,
        description="How long a signed funding authorization can be submitted.",
    )

    max_job_price: BaseUnits | None = Field(
        default=None, description="No job may cost more than this."
    )
    max_price_per_million_output: BaseUnits | None = None
    second_is_worth: BaseUnits = Field(
        default=50,
        description="Base units that one second of waiting counts for when workers are ranked.",
    )
    job_lifetime_s: int = Field(default=900, ge=10, le=86400)
    stall_timeout_s: float = Field(
        default=120.0,
        gt=0,
        le=3600,
        description="A stream without any frame for this long counts as dropped.",
    )
    acknowledgement_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=60,
        description="How long the worker has to confirm the last voucher of a job.",
    )
    resume_attempts: int = Field(default=5, ge=0, le=20)
    keep_text: bool = Field(
        default=False, description="Keep prompts and answers in the client's database."
    )

    gateway_api_key: str | None = Field(default=None, min_length=8, max_length=256, repr=False)
    gateway_max_concurrent: int = Field(default=64, ge=1, le=4096)
    gateway_heartbeat_s: float = Field(default=10.0, gt=0, le=60)
    gateway_best_effort: bool = Field(
        default=False,
        description="Requests that do not say may go to models without seed and trace.",
    )

    _file: ClassVar[dict[str, Any]] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, cls._file)


def load_config(file: Path, flags: dict[str, Any] | None = None) -> ClientConfig:
    """Read the configuration. Flags that are None were not given. `ConfigError` names the key."""
    values = _read(file)
    given = {k: v for k, v in (flags or {}).items() if v is not None}
    for key in (*values, *given):
        if key not in ClientConfig.model_fields:
            raise ConfigError(f"{file}: unknown key {key!r}{_nearest(key)}")

    class Bound(ClientConfig):
        """The configuration with this file as its lowest source."""

        _file: ClassVar[dict[str, Any]] = values

    try:
        return Bound(**given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"configuration key {key}: {first['msg']}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None


def _nearest(key: str) -> str:
    close = difflib.get_close_matches(key, ClientConfig.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
