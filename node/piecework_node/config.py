"""The worker's settings: `config.toml` in its home < PIECEWORK_WORKER_* in the environment < flags.

The only module that reads the environment. Settings are flat, typed and bounded; a key that does
not exist is refused together with the nearest one that does. Amounts are in base units of the
payment token, prices in base units per million tokens or per thousand denoising steps.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from piecework_node.errors import ConfigError
from piecework_node.jobs.admission import Terms
from piecework_node.jobs.worker import Policy
from piecework_node.models.store import ModelStore, checkpoint_folder
from piecework_protocol.limits import (
    MAX_CREDIT_WINDOW_CANVASES,
    MAX_ENDPOINT_BYTES,
    MAX_OFFER_LIFETIME_S,
    MAX_OFFER_TOKENS,
)
from piecework_protocol.types import Address, Amount, Seconds, parse_address

ENVIRONMENT_PREFIX: Final = "PIECEWORK_WORKER_"
PASSWORD_VARIABLE: Final = "PIECEWORK_PASSWORD"  # noqa: S105  a name, not a password
MODELS_VARIABLE: Final = "PIECEWORK_MODELS"
"""The store of pulled models, for every command; as a source of `model_store` it counts as
environment."""
MAX_AMOUNT: Final = 2**128 - 1
MAX_INDEXES: Final = 16
MAX_VLLM_ENDPOINTS: Final = 64
"""Each is asked for its health every few seconds; more belong behind vLLM's own data parallelism.
"""
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

Units = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]


class WorkerConfig(BaseSettings):
    """Everything that an operator may set. Every field has a bound, and a default where one is
    sensible."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True)

    # money
    payout: str = Field(description="receiver of all earnings; its key stays off this machine")
    price_per_million_prompt_tokens: Units = 50_000
    price_per_million_output_tokens: Units = 200_000
    price_per_thousand_steps: Units = 1_000
    accepted_tokens: tuple[str, ...] = Field(
        (), max_length=MAX_OFFER_TOKENS, description="empty: the token of the deployment"
    )
    min_deposit: Units = 100_000
    min_withdrawal_delay_s: int = Field(900, ge=60, le=30 * 24 * 3600)
    credit_window: int = Field(2, ge=1, le=MAX_CREDIT_WINDOW_CANVASES)

    # capacity
    slots: int = Field(2, ge=1, le=256)
    queue: int = Field(4, ge=0, le=1024)
    jobs_per_channel: int = Field(8, ge=1, le=256)
    payment_timeout_s: float = Field(30.0, ge=1, le=3600)
    drain_grace_s: float = Field(60.0, ge=0, le=24 * 3600)

    # network
    bind: str = Field(
        "127.0.0.1:50051", description="host:port to listen on; port 0 picks a free one"
    )
    endpoint: str = Field(
        "", max_length=MAX_ENDPOINT_BYTES, description="what clients dial; empty: as bound"
    )
    indexes: tuple[str, ...] = Field((), max_length=MAX_INDEXES)
    offer_lifetime_s: int = Field(300, ge=30, le=MAX_OFFER_LIFETIME_S)
    sealing_key_rotation_s: int = Field(24 * 3600, ge=600, le=30 * 24 * 3600)
    requests_per_minute: int = Field(600, ge=1, le=1_000_000, description="per peer address")
    max_streams: int = Field(256, ge=1, le=100_000)
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(0, ge=0, le=65535)
    admin_public: bool = Field(
        False, description="allow the admin port off loopback; only behind your own fence"
    )

    # chain
    rpc_url: str = Field("", description="empty: the one of the deployment")
    rpc_timeout_s: float = Field(10.0, ge=0.1, le=120)
    finality_depth: int = Field(0, ge=0, le=10_000, description='0: the node\'s "finalized" tag')
    chain_poll_s: float = Field(5.0, ge=0.05, le=600)
    channel_refresh_s: float = Field(10.0, ge=0, le=600)
    chain_outage_s: float = Field(120.0, ge=1, le=3600)
    settle_interval_s: float = Field(3600.0, ge=1, le=30 * 24 * 3600)
    settle_gas_multiple: float = Field(20.0, ge=1, le=1_000_000)
    native_coin_price: Units = Field(
        3_000_000_000,
        description="base units of the token for one native coin, to weigh gas against earnings",
    )
    max_fee_gwei: float = Field(500.0, gt=0, le=1_000_000)
    stuck_after_s: float = Field(90.0, ge=1, le=24 * 3600)

    # engine
    backend: Literal["diffusion", "vllm"] = Field(
        "diffusion",
        description="our own engine, replayable; or vLLM servers, best effort (docs/vllm.md)",
    )
    vllm_endpoints: tuple[str, ...] = Field(
        (),
        max_length=MAX_VLLM_ENDPOINTS,
        description="base URLs of vLLM servers that serve the same model",
    )
    vllm_model: str = Field(
        "",
        max_length=256,
        description="what the servers call the model; empty: they serve only one",
    )
    vllm_api_key: str = Field("", max_length=512, repr=False, description="the servers' --api-key")
    model: str = Field(
        "",
        description="checkpoint folder, or a pulled model as owner/name[@revision]; empty: the "
        "bundled one",
    )
    model_store: str = Field(
        "", description="folder of pulled models; empty: the platform's data folder"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "fp8", "int4"] = Field(
        "auto", description="of the weights; auto: the most faithful that fits the device"
    )
    planned_context: int = Field(
        0,
        ge=0,
        le=2**24,
        description="tokens of a job, prompt and answer, for which `slots` of them must fit; 0: "
        "8192",
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads; 0: one for a small model, else torch's choice"
    )
    benchmark_s: float = Field(5.0, ge=0.1, le=300)

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Everything arrives through `load`, which has merged the sources already."""
        return (init_settings,)

    @field_validator("payout")
    @classmethod
    def _payout_is_an_address(cls, value: str) -> str:
        parse_address(value)
        return value

    @field_validator("accepted_tokens")
    @classmethod
    def _tokens_are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for token in value:
            parse_address(token)
        return value

    @field_validator("bind", "endpoint")
    @classmethod
    def _is_host_and_port(cls, value: str) -> str:
        if value:
            split_endpoint(value)
        return value

    @field_validator("indexes")
    @classmethod
    def _indexes_are_http(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not url.startswith(("http://", "https://")):
                raise ValueError("an index is an http:// or https:// address")
        return value

    @field_validator("vllm_endpoints")
    @classmethod
    def _endpoints_are_base_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            parts = urlsplit(url)
            plain = not (parts.query or parts.fragment or parts.username or parts.password)
            if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
                raise ValueError(
                    "a vLLM endpoint is a plain http:// or https:// address; a key has a setting"
                )
            if parts.path.rstrip("/").endswith("/v1"):
                raise ValueError("a vLLM endpoint is given without /v1")
        if len({url.rstrip("/") for url in value}) != len(value):
            raise ValueError("a vLLM endpoint is given twice")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.admin_host not in _LOOPBACK and not self.admin_public:
            raise ValueError("admin_host is not loopback: set admin_public = true if you mean it")
        if self.chain_outage_s >= self.min_withdrawal_delay_s:
            raise ValueError("chain_outage_s must be shorter than min_withdrawal_delay_s")
        self._check_backend()
        return self

    def _check_backend(self) -> None:
        if self.backend == "diffusion":
            if self.vllm_endpoints:
                raise ValueError(
                    'vllm_endpoints are set: set backend = "vllm" too if you mean them'
                )
            return
        if not self.vllm_endpoints:
            raise ValueError("backend vllm needs vllm_endpoints")
        if not self.model:
            raise ValueError("backend vllm needs model: the checkpoint that the servers serve")
        if "price_per_thousand_steps" in self.model_fields_set and self.price_per_thousand_steps:
            raise ValueError("price_per_thousand_steps must be 0 with vLLM, which counts no steps")

    # --- as the parts take them

    @property
    def receiver(self) -> Address:
        """The payout address."""
        return parse_address(self.payout)

    def tokens(self, default: Address) -> tuple[Address, ...]:
        """The accepted tokens; `default` is the deployment's."""
        return tuple(parse_address(t) for t in self.accepted_tokens) or (default,)

    def terms(self, default_token: Address) -> Terms:
        """What admission asks for."""
        return Terms(
            tokens=self.tokens(default_token),
            min_deposit=Amount(self.min_deposit),
            min_withdrawal_delay=Seconds(self.min_withdrawal_delay_s),
            jobs_per_channel=self.jobs_per_channel,
            capacity=self.slots + self.queue,
        )

    @property
    def step_price(self) -> Amount:
        """Base units for a thousand denoising steps; best effort has none to charge (clause
        3.10)."""
        return Amount(0 if self.backend == "vllm" else self.price_per_thousand_steps)

    def checkpoint(self) -> Path | None:
        """The folder that `model` means; none for the bundled one. `ModelNotPulled` says what to
        run."""
        if not self.model:
            return None
        return checkpoint_folder(
            self.model, ModelStore(Path(self.model_store) if self.model_store else None)
        )

    @property
    def policy(self) -> Policy:
        """The worker's patience."""
        return Policy(self.payment_timeout_s, self.channel_refresh_s, self.chain_outage_s)


def load(
    home: Path, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> WorkerConfig:
    """The settings of a home. `ConfigError` names the key at fault and where it stands."""
    environment = os.environ if environment is None else environment
    merged: dict[str, Any] = {}
    for where, values in (
        (str(home / "config.toml"), _file(home / "config.toml")),
        ("the environment", _environment(environment)),
        ("the flags", {k: v for k, v in (flags or {}).items() if v is not None}),
    ):
        _check_names(where, values)
        merged |= values
    return check(merged)


def check(values: Mapping[str, Any]) -> WorkerConfig:
    """Settings from plain values. `ConfigError` names every one that is out of bounds."""
    try:
        return WorkerConfig(**values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from None


def child_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the engine process gets: no setting and no secret of ours or a hub's, no way to the
    network."""
    environment = os.environ if environment is None else environment
    kept = {
        k: v for k, v in environment.items() if not k.startswith("PIECEWORK_") and k != "HF_TOKEN"
    }
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONSAFEPATH": "1",
    }


def split_endpoint(text: str) -> tuple[str, int]:
    """ "host:port" or "[v6]:port" as host and port; `ValueError` says what is wrong."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def to_toml(values: Mapping[str, Any]) -> str:
    """Settings as a flat TOML file. Values are strings, numbers, booleans or tuples of strings."""
    lines = []
    for key, value in values.items():
        description = WorkerConfig.model_fields[key].description
        if description:
            lines.append(f"# {description}")
        lines.append(f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    import json

    return json.dumps(str(value))  # a JSON string is a TOML basic string


def _file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
            many = key in ("indexes", "accepted_tokens", "vllm_endpoints")
            found[key] = [v.strip() for v in value.split(",") if v.strip()] if many else value
    if environment.get(MODELS_VARIABLE):
        found.setdefault("model_store", environment[MODELS_VARIABLE])
    return found


def _check_names(where: str, values: Mapping[str, Any]) -> None:
    for key in values:
        if key not in WorkerConfig.model_fields:
            near = difflib.get_close_matches(key, WorkerConfig.model_fields, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{where}: there is no setting {key}.{hint}")


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "settings"
    if error["type"] == "missing":
        return f"{where} is not set. Run `piecework worker init`, or set it in config.toml"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"
