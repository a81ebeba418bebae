"""The worker's settings: `config.toml` in its home < PIECEWORK_WORKER_* in the environment < flags.

Settings are flat, typed and bounded. Amounts are in base units of the payment token. Prices are in
base units per million tokens or per thousand denoising steps. This module knows nothing of the
parts that the settings are for. `daemon.assembly` builds those.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from piecework.base import settings
from piecework.base.amounts import Token
from piecework.base.connections import parse_networks
from piecework.base.hosts import LOOPBACK, is_unspecified
from piecework.base.settings import Settings, Variables
from piecework_node.endpoints import split_endpoint
from piecework_protocol.credit import FIRST_PROMPT_TOKENS, least_first
from piecework_protocol.limits import (
    MAX_CHANNEL_AMOUNT,
    MAX_ENDPOINT_BYTES,
    MAX_OFFER_ENDPOINTS,
    MAX_OFFER_LIFETIME_S,
    MAX_OFFER_TOKENS,
)
from piecework_protocol.relaying import MAX_RELAY_NAME_BYTES
from piecework_protocol.types import Address, parse_address

VARIABLES: Final = Variables(
    "PIECEWORK_WORKER_",
    neighbours=("PIECEWORK_CLIENT_",),
    # The store of pulled models, for every command.
    aliases={"PIECEWORK_MODELS": "model_store"},
)
STRANGERS: Final = 8
"""How many of them may owe all that one of them may."""
FIRST_CANVAS_TOKENS: Final = 256
FIRST_STEPS: Final = 48
"""A full canvas of the published model. The start holds credit_first to the model that runs."""
MAX_INDEXES: Final = 16
MAX_RPC_URLS: Final = 16
MAX_VLLM_ENDPOINTS: Final = 64
"""Each is asked for its health every few seconds. More belong behind vLLM's own data parallelism.
"""
MAX_RELAYS: Final = MAX_OFFER_ENDPOINTS - 1
"""An offer names the worker's own address beside them."""

DEFAULT_DECIMALS: Final = 6
_ONE_TOKEN: Final = 10**DEFAULT_DECIMALS
MONEY: Final = (
    "price_per_million_prompt_tokens",
    "price_per_million_output_tokens",
    "price_per_thousand_steps",
    "min_deposit",
    "credit_first",
    "credit_mined",
    "credit_max",
    "min_top_up",
    "native_coin_price",
)
"""Settings in base units of the payment token that have a default."""
CREDIT: Final = ("credit_first", "credit_mined", "credit_max")
"""Those of them that follow the prices unless they are set."""

Units = Annotated[int, Field(ge=0, le=MAX_CHANNEL_AMOUNT)]


class WorkerConfig(Settings):
    """Everything that an operator may set. Every field has a bound."""

    # money
    payout: str = Field(
        description="address that receives all earnings. Its key stays off this machine"
    )
    price_per_million_prompt_tokens: Units = 50_000
    price_per_million_output_tokens: Units = 200_000
    price_per_thousand_steps: Units = 1_000
    accepted_tokens: tuple[str, ...] = Field(
        (),
        max_length=MAX_OFFER_TOKENS,
        description="token addresses. Empty: the token of the deployment",
    )
    min_deposit: Units = 100_000
    credit_first: Units = Field(
        2_000,
        description="what a new client may owe before its channel's opening is mined. Not set: "
        "at least the price of a prompt of 4096 tokens and of one canvas",
    )
    credit_mined: Units = Field(
        25_000,
        description="what a client may owe at most before its deposit is final. Not set: at least "
        "credit_first",
    )
    credit_max: Units = Field(
        1_000_000,
        description="what any client may owe at most. Not set: at least credit_mined",
    )
    stranger_credit: Units = Field(
        0,
        description="what all clients without a mined deposit may owe together. 0: 8 times "
        "credit_first",
    )
    write_off_s: int = Field(
        6 * 3600,
        ge=600,
        le=30 * 24 * 3600,
        description="seconds after which the debt of a client whose channel was never opened no "
        "longer counts in stranger_credit",
    )
    open_fee: Units | None = Field(
        None,
        description="for opening a client's channel, at least credit_first. Not set: follows the "
        "gas price",
    )
    top_up_fee: Units | None = Field(
        None, description="for topping a client's channel up. Not set: follows the gas price"
    )
    close_fee: Units | None = Field(
        None, description="for closing a client's channel. Not set: follows the gas price"
    )
    min_top_up: Units = Field(100_000, description="smallest raise of a channel that is sent")
    min_withdrawal_delay_s: int = Field(900, ge=60, le=30 * 24 * 3600)

    # capacity
    slots: int = Field(2, ge=1, le=256)
    queue: int = Field(4, ge=0, le=1024)
    jobs_per_channel: int = Field(8, ge=1, le=256)
    payment_timeout_s: float = Field(30.0, ge=1, le=3600)
    drain_grace_s: float = Field(60.0, ge=0, le=24 * 3600)

    # network
    bind: str = Field(
        "127.0.0.1:50051",
        description="host:port to listen on. Port 0 picks a free one. Empty: clients come through "
        "relays alone",
    )
    endpoint: str = Field(
        "",
        max_length=MAX_ENDPOINT_BYTES,
        description="host:port that clients dial. Empty: as bound",
    )
    relays: tuple[str, ...] = Field(
        (),
        max_length=MAX_RELAYS,
        description="relays to be reached through, each as it calls itself: host:port",
    )
    indexes: tuple[str, ...] = Field((), max_length=MAX_INDEXES)
    offer_lifetime_s: int = Field(300, ge=30, le=MAX_OFFER_LIFETIME_S)
    sealing_key_rotation_s: int = Field(24 * 3600, ge=600, le=30 * 24 * 3600)
    requests_per_minute: int = Field(
        600,
        ge=1,
        le=1_000_000,
        description="per peer address. Ten times as many close the connection",
    )
    paid_requests_per_minute: int = Field(
        6000, ge=1, le=1_000_000, description="per channel that has paid"
    )
    max_streams: int = Field(
        256,
        ge=2,
        le=100_000,
        description="at once. Addresses that have never paid get half of them",
    )
    streams_per_address: int = Field(
        32, ge=1, le=100_000, description="of an address, apart from admitted jobs"
    )
    max_connections: int = Field(1024, ge=8, le=100_000)
    connections_per_address: int = Field(64, ge=1, le=100_000)
    trusted_proxies: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="addresses or networks of proxies in front of bind that speak for many "
        "clients. The bounds of one address do not apply to them",
    )
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(0, ge=0, le=65535)
    admin_public: bool = Field(
        False, description="allow the admin port off loopback. Protect it yourself then"
    )

    # chain
    rpc_url: str = Field(
        "", description="the chain's node. Empty: the one of a development chain's file"
    )
    rpc_urls: tuple[str, ...] = Field(
        (),
        max_length=MAX_RPC_URLS,
        description="several nodes, of which rpc_quorum must agree about money. Empty: rpc_url",
    )
    rpc_quorum: int = Field(0, ge=0, le=MAX_RPC_URLS, description="0: more than half of rpc_urls")
    rpc_timeout_s: float = Field(10.0, ge=0.1, le=120)
    finality_depth: int = Field(0, ge=0, le=10_000, description='0: the node\'s "finalized" tag')
    chain_poll_s: float = Field(5.0, ge=0.05, le=600)
    channel_refresh_s: float = Field(10.0, ge=0, le=600)
    block_time_s: float = Field(
        12.0,
        ge=0.1,
        le=600,
        description="between two blocks. The head is too old after ten of them, and at least 60 s",
    )
    chain_outage_s: float = Field(120.0, ge=1, le=3600)
    settle_interval_s: float = Field(3600.0, ge=1, le=30 * 24 * 3600)
    settle_gas_multiple: float = Field(20.0, ge=1, le=1_000_000)
    native_coin_price: Units = Field(
        3_000_000_000,
        description="base units of the token for one native coin, to weigh gas against earnings",
    )
    max_fee_gwei: float = Field(500.0, gt=0, le=1_000_000)
    stuck_after_s: float = Field(90.0, ge=1, le=24 * 3600)

    # journal
    evidence_s: int = Field(
        3 * 24 * 3600,
        ge=0,
        le=2**31,
        description="seconds after a job's deadline in which it can be audited. Then the journal "
        "keeps its digests and amounts alone",
    )

    # engine
    backend: Literal["diffusion", "vllm"] = Field(
        "diffusion",
        description="diffusion: our own engine, replayable. vllm: vLLM servers, best effort",
    )
    vllm_endpoints: tuple[str, ...] = Field(
        (),
        max_length=MAX_VLLM_ENDPOINTS,
        description="base URLs of vLLM servers that serve the same model",
    )
    vllm_model: str = Field(
        "",
        max_length=256,
        description="what the servers call the model. Empty: they serve only one",
    )
    vllm_api_key: str = Field("", max_length=512, repr=False, description="the servers' --api-key")
    model: str = Field(
        "",
        description="checkpoint folder, or a pulled model as owner/name[@revision]. Empty: the "
        "bundled one",
    )
    model_store: str = Field(
        "", description="folder of pulled models. Empty: the platform's data folder"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "fp8", "int4"] = Field(
        "auto", description="of the weights. auto: the highest precision that fits in memory"
    )
    planned_context: int = Field(
        0,
        ge=0,
        le=2**24,
        description="tokens of a job, prompt and answer, for which `slots` jobs must fit. 0: 8192",
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads. 0: one for a small model, else torch's choice"
    )
    benchmark_s: float = Field(5.0, ge=0.1, le=300)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "human", "json"] = Field(
        "auto", description="auto: human on a terminal, JSON lines otherwise"
    )

    @field_validator("payout")
    @classmethod
    def _payout_is_an_address(cls, value: str) -> str:
        if not any(parse_address(value)):
            raise ValueError("nobody holds the key of the zero address: earnings would be lost")
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

    @field_validator("relays")
    @classmethod
    def _relays_are_host_and_port(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for relay in value:
            if len(relay) > MAX_RELAY_NAME_BYTES or split_endpoint(relay)[1] == 0:
                raise ValueError("a relay is host:port")
        if len(set(value)) != len(value):
            raise ValueError("a relay is given twice")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_networks(value)
        return value

    @field_validator("indexes", "rpc_urls")
    @classmethod
    def _addresses_are_http(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not url.startswith(("http://", "https://")):
                raise ValueError("an address begins with http:// or https://")
        if len({url.rstrip("/") for url in value}) != len(value):
            raise ValueError("an address is given twice")
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
        if self.admin_host not in LOOPBACK and not self.admin_public:
            raise ValueError("admin_host is not loopback: set admin_public = true if you mean it")
        if self.rpc_quorum > len(self.rpc_urls):
            raise ValueError("rpc_quorum is more than there are rpc_urls")
        if self.rpc_urls and self.rpc_url:
            raise ValueError("set rpc_url or rpc_urls, not both")
        if not self.listens and not self.relays:
            raise ValueError("bind is empty and there are no relays: no client could come")
        if not self.listens and self.endpoint:
            raise ValueError("endpoint is set and bind is empty: nothing listens for it")
        if self.listens and is_unspecified(split_endpoint(self.endpoint or self.bind)[0]):
            raise ValueError(
                f"{self.endpoint or self.bind} means every address, and clients cannot dial it: "
                "set endpoint to the host:port that they dial"
            )
        if 3 * self.chain_outage_s >= self.min_withdrawal_delay_s:
            # Claims go out in the last third of a withdrawal's delay.
            raise ValueError(
                "chain_outage_s must be shorter than a third of min_withdrawal_delay_s"
            )
        self._check_backend()
        self._check_credit()
        return self

    def _check_credit(self) -> None:
        if self.first_credit < self.least_first_credit:
            raise ValueError(
                f"credit_first must be {self.least_first_credit} or more at these prices. A new "
                f"client could not begin a prompt of {FIRST_PROMPT_TOKENS} tokens and one canvas"
            )
        if not self.first_credit <= self.mined_credit <= self.most_credit:
            raise ValueError(
                f"credit_first ({self.first_credit}), credit_mined and credit_max must not go down"
            )
        if self.strangers_together < self.first_credit:
            raise ValueError(f"stranger_credit must be credit_first ({self.first_credit}) or more")
        if self.open_fee is not None and self.open_fee < self.first_credit:
            raise ValueError(
                f"open_fee is less than credit_first ({self.first_credit}): an opening that never "
                "comes would cost more than it brings"
            )

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

    # --- what several settings say together

    @property
    def receiver(self) -> Address:
        """The payout address."""
        return parse_address(self.payout)

    @property
    def listens(self) -> bool:
        """Whether clients can dial the worker itself."""
        return bool(self.bind)

    @property
    def first_address(self) -> str:
        """What is registered: the worker's own address, or its first relay."""
        return self.endpoint or self.bind or self.relays[0]

    def tokens(self, default: Address) -> tuple[Address, ...]:
        """The accepted tokens. `default` is the deployment's."""
        return tuple(parse_address(t) for t in self.accepted_tokens) or (default,)

    @property
    def least_first_credit(self) -> int:
        """The least credit_first with which anybody new can begin a job at these prices."""
        return least_first(
            self.price_per_million_prompt_tokens,
            self.price_per_million_output_tokens,
            self.step_price,
            canvas_size=FIRST_CANVAS_TOKENS,
            max_steps=FIRST_STEPS,
        )

    def _at_least(self, name: str, least: int) -> int:
        """A setting as it was set, or its default where that is enough."""
        value: int = getattr(self, name)
        return value if name in self.model_fields_set else max(value, least)

    @property
    def first_credit(self) -> int:
        """What a payer may owe before its opening is mined."""
        return self._at_least("credit_first", self.least_first_credit)

    @property
    def mined_credit(self) -> int:
        """What a payer may owe at most before its deposit is final."""
        return self._at_least("credit_mined", self.first_credit)

    @property
    def most_credit(self) -> int:
        """What any payer may owe at most."""
        return self._at_least("credit_max", self.mined_credit)

    @property
    def strangers_together(self) -> int:
        """What all payers without a mined deposit may owe together."""
        return self.stranger_credit or STRANGERS * self.first_credit

    @property
    def step_price(self) -> int:
        """Base units for a thousand denoising steps. Best effort charges none (clause 3.10)."""
        return 0 if self.backend == "vllm" else self.price_per_thousand_steps


def money_defaults(token: Token) -> dict[str, int]:
    """Return the defaults of the settings that are money, in base units of `token`.

    The defaults of `WorkerConfig` are amounts of a token with 6 decimals, as USDC has. Another
    token gets the same number of tokens, and at least one base unit. Amounts of credit follow the
    prices, so `fitting_credit` has the last word on them.
    """
    if token.decimals == DEFAULT_DECIMALS:
        return {}
    return {
        name: max(1, WorkerConfig.model_fields[name].default * 10**token.decimals // _ONE_TOKEN)
        for name in MONEY
    }


def fitting_credit(values: Mapping[str, Any], chosen: Collection[str]) -> dict[str, Any]:
    """Return `values` with credit that is enough for their prices.

    chosen: settings that somebody decided on. They stay as they are.
    """
    free = [name for name in CREDIT if name in values and name not in chosen]
    fixed = {name: value for name, value in values.items() if name not in free}
    fitted = check(fixed)
    least = (fitted.first_credit, fitted.mined_credit, fitted.most_credit)
    wanted = dict(zip(CREDIT, least, strict=True))
    return {**values, **{name: max(values[name], wanted[name]) for name in free}}


def load(
    home: Path, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> WorkerConfig:
    """Return the settings of a home.

    Raises:
        SettingsError: a setting is missing, unknown or out of bounds. Names it and its place.
    """
    file = home / "config.toml"
    return settings.load(WorkerConfig, VARIABLES, file=file, environment=environment, flags=flags)


def check(values: Mapping[str, Any]) -> WorkerConfig:
    """Return settings from plain values.

    Raises:
        SettingsError: a setting is missing, unknown or out of bounds.
    """
    return settings.check(WorkerConfig, values)


def to_toml(values: Mapping[str, Any]) -> str:
    """Return the text of a config.toml with these settings."""
    return settings.to_toml(WorkerConfig, values)
