"""The worker's settings: `config.toml` in its home < PIECEWORK_WORKER_* in the environment < flags.

Settings are flat, typed and bounded. Amounts and prices are numbers of tokens with their unit
(`piecework.base.written_amounts`). `amounts` turns them into base units of the market's token. This
module knows nothing of the parts that the settings are for. `daemon.assembly` builds those.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from piecework.base import settings
from piecework.base.amounts import Token
from piecework.base.connections import parse_networks
from piecework.base.hosts import LOOPBACK, MAX_NODES, check_nodes, check_urls, is_unspecified
from piecework.base.settings import Settings, Variables
from piecework.base.written_amounts import WrittenAmount, amount_fields
from piecework.signer.place import SignerPlace
from piecework_node import card_settings
from piecework_node.card_settings import CardSettings, GpuNumber
from piecework_node.endpoints import split_endpoint
from piecework_node.schedule import Window
from piecework_node.worker_amounts import WorkerAmounts, amounts_of
from piecework_protocol.limits import (
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
MAX_INDEXES: Final = 16
MAX_RELAYS: Final = MAX_OFFER_ENDPOINTS - 1
"""An offer names the worker's own address beside them."""


class WorkerConfig(Settings):
    """Everything that an operator may set. Every field has a bound."""

    # money
    payout: str = Field(
        description="address that receives all earnings. Its key stays off this machine"
    )
    price_per_million_prompt_tokens: WrittenAmount = "0.05"
    price_per_million_output_tokens: WrittenAmount = "0.2"
    price_per_thousand_steps: WrittenAmount = "0.001"
    automatic_prices: bool = Field(
        False,
        description="ask less than your own prices where the market does, by the rule of "
        "docs/owners/prices.md. Your own prices are the most that is asked",
    )
    automatic_least_percent: int = Field(
        50, ge=1, le=100, description="of your own prices: nothing below it is asked"
    )
    automatic_step_percent: int = Field(
        5, ge=1, le=25, description="by which the market may move what is asked in an hour"
    )
    accepted_tokens: tuple[str, ...] = Field(
        (),
        max_length=MAX_OFFER_TOKENS,
        description="token addresses. Empty: the token of the deployment",
    )
    min_deposit: WrittenAmount = "0.1"
    credit_first: WrittenAmount = Field(
        "0.002",
        description="what a new client may owe before its channel's opening is mined. Not set: "
        "at least the price of a prompt of 4096 tokens and of one canvas",
    )
    credit_mined: WrittenAmount = Field(
        "0.025",
        description="what a client may owe at most before its deposit is final. Not set: at least "
        "credit_first",
    )
    credit_max: WrittenAmount = Field(
        "1.0",
        description="what any client may owe at most. Not set: at least credit_mined",
    )
    stranger_credit: WrittenAmount = Field(
        "0",
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
    open_fee: WrittenAmount | None = Field(
        None,
        description="for opening a client's channel, at least credit_first. Not set: follows the "
        "gas price",
    )
    top_up_fee: WrittenAmount | None = Field(
        None, description="for topping a client's channel up. Not set: follows the gas price"
    )
    close_fee: WrittenAmount | None = Field(
        None, description="for closing a client's channel. Not set: follows the gas price"
    )
    min_top_up: WrittenAmount = Field("0.1", description="smallest raise of a channel that is sent")
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
        max_length=MAX_NODES,
        description="several nodes, of which rpc_quorum must agree about money. Empty: rpc_url",
    )
    rpc_quorum: int = Field(0, ge=0, le=MAX_NODES, description="0: more than half of rpc_urls")
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
    native_coin_price: WrittenAmount = Field(
        "3000.0",
        description="price of one native coin, to weigh gas against earnings. 0: gas is free",
    )
    max_fee_gwei: float = Field(500.0, gt=0, le=1_000_000)
    stuck_after_s: float = Field(90.0, ge=1, le=24 * 3600)

    # journal
    evidence_s: int = Field(
        5 * 24 * 3600,
        ge=0,
        le=2**31,
        description="seconds after a job's deadline in which it can be audited. Until then the "
        "journal keeps its sealed content, receipts and leaves, and the sealing keys. Then it "
        "keeps digests and amounts alone. The offer states it. In a market with disputes at least "
        "345600",
    )
    evidence_bytes: int = Field(
        2**30,
        ge=0,
        le=2**50,
        description="bytes on disk for the steps of canvases, sealed, in the folder steps of the "
        "home. With them a leaf opens at once, also after a change of the engine. Without them the "
        "engine computes the canvas again. The oldest go first. 0: none are kept",
    )
    min_free_disk_mib: int = Field(
        1024,
        ge=0,
        le=2**31,
        description="MiB that must be free on the disk of the worker's home. With less it takes no "
        "new job and finishes those that it has",
    )

    # engine
    backend: Literal["diffusion", "vllm"] = Field(
        "diffusion",
        description="diffusion: our own engine, replayable. vllm: vLLM servers, best effort",
    )
    vllm_endpoints: tuple[str, ...] = Field(
        (),
        max_length=card_settings.MAX_VLLM_ENDPOINTS,
        description="base URLs of vLLM servers that serve the same model",
    )
    vllm_model: str = Field(
        "",
        max_length=256,
        description="what the servers call the model. Empty: they serve only one",
    )
    vllm_api_key: str = Field("", max_length=512, repr=False, description="the servers' --api-key")
    vllm_programs: tuple[str, ...] = Field(
        ("VLLM::",),
        max_length=16,
        description="how the names of the servers' programs begin, as nvidia-smi shows them. They "
        "count as ours in pause_gpu_share and pause_gpu_memory_mib",
    )
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

    # owner
    pause_schedule: tuple[str, ...] = Field(
        (),
        max_length=32,
        description="hours in which the owner needs the machine, in local time, such as "
        "`mon-fri 18:00-23:00`",
    )
    pause_gpu_share: int = Field(
        0, ge=0, le=100, description="percent of the GPU's time that other programs may use. 0: all"
    )
    pause_gpu_memory_mib: int = Field(
        0, ge=0, le=2**24, description="MiB of the GPU's memory that they may use. 0: all"
    )
    pause_temperature_c: int = Field(0, ge=0, le=150, description="of the GPU. 0: no bound")
    pause_power_w: int = Field(0, ge=0, le=10_000, description="of the GPU. 0: no bound")
    pause_on_battery: bool = False
    pause_quiet_s: float = Field(
        60.0, ge=1, le=3600, description="for which a measured cause must be gone"
    )
    pause_max_s: int = Field(
        300, ge=10, le=3600, description="after which paused jobs are handed back unpaid"
    )
    pause_frees_memory: bool = Field(
        False, description="move weights and canvases to the host's memory in a pause"
    )
    gpu_number: int = Field(
        0, ge=0, le=63, description="of the card that is watched, as nvidia-smi -L counts them"
    )
    gpu_numbers: tuple[GpuNumber, ...] = Field(
        (),
        max_length=card_settings.MAX_CARDS,
        description="of the GPUs of this machine that vLLM servers use, all of them watched. "
        "Empty: gpu_number alone",
    )

    cards: tuple[CardSettings, ...] = Field(
        (),
        max_length=card_settings.MAX_CARDS,
        description="several cards, each with an engine of its own. Empty: one card",
    )

    # console
    usd_per_token: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="your own price of the token, to show dollars. worker join sets 1 where the "
        "market's descriptor marks the token. 0: unknown",
    )
    usd_per_kwh: float = Field(
        0.0, ge=0, le=1000, description="your own price of power. 0: unknown"
    )
    busy_power_w: int = Field(
        0,
        ge=0,
        le=100_000,
        description="what the machine draws while jobs run, for automatic prices where NVML does "
        "not tell. 0: unknown",
    )
    alert_webhook: str = Field(
        "",
        max_length=2048,
        repr=False,
        description="URL that gets alerts as JSON. Anybody who knows it may post there too",
    )

    signer: SignerPlace = ""

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

    @field_validator("alert_webhook")
    @classmethod
    def _webhook_is_http(cls, value: str) -> str:
        if value and not value.startswith(("https://", "http://")):
            raise ValueError("a webhook begins with https:// or http://")
        return value

    @field_validator("pause_schedule")
    @classmethod
    def _schedule_has_hours(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            Window.parse(text)
        return value

    @field_validator("indexes", "rpc_urls")
    @classmethod
    def _addresses_are_http(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_urls(value)

    @field_validator("gpu_numbers")
    @classmethod
    def _gpus_are_named_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a GPU is named twice")
        return value

    @field_validator("vllm_programs")
    @classmethod
    def _programs_have_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError("an empty name is the beginning of every program's")
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
        check_nodes(self.rpc_url, self.rpc_urls, self.rpc_quorum)
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
        if self.cards:
            card_settings.check_cards(self.cards, [own for _, own in self.of_cards])
        else:
            self._check_backend()
        return self

    def _check_backend(self) -> None:
        if self.backend == "diffusion":
            if self.vllm_endpoints:
                raise ValueError(
                    'vllm_endpoints are set: set backend = "vllm" too if you mean them'
                )
            if self.gpu_numbers:
                raise ValueError("gpu_numbers are for vLLM. An engine of ours uses gpu_number")
            return
        if not self.vllm_endpoints:
            raise ValueError("backend vllm needs vllm_endpoints")
        if self.pause_frees_memory:
            raise ValueError("pause_frees_memory is set, and a vLLM server keeps its memory")
        if not self.model:
            raise ValueError("backend vllm needs model: the checkpoint that the servers serve")
        steps = self.price_per_thousand_steps.partition(" ")[0]
        if "price_per_thousand_steps" in self.model_fields_set and steps.strip("0."):
            raise ValueError("price_per_thousand_steps must be 0 with vLLM, which counts no steps")

    # --- what several settings say together

    @property
    def watched_gpus(self) -> tuple[int, ...]:
        """The GPUs that the pause rules watch, as nvidia-smi -L counts them."""
        return self.gpu_numbers or (self.gpu_number,)

    @property
    def names_gpus(self) -> bool:
        """Whether the settings say which GPUs do the work."""
        return bool(self.gpu_numbers) or "gpu_number" in self.model_fields_set

    @property
    def watches_gpus(self) -> bool:
        """Whether a pause rule is about a GPU."""
        return bool(
            self.pause_gpu_share
            or self.pause_gpu_memory_mib
            or self.pause_temperature_c
            or self.pause_power_w
        )

    @property
    def of_cards(self) -> tuple[tuple[str, WorkerConfig], ...]:
        """Return each card's name, and its settings as those of a worker with one card.

        Prices are the worker's own.
        """
        if not self.cards:
            return ((card_settings.FIRST_CARD, self),)
        outside = ("cards", "price_per_thousand_steps")
        common = {n: getattr(self, n) for n in self.model_fields_set if n not in outside}
        return card_settings.with_cards(WorkerConfig, common, self.cards)

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

    @property
    def lasting_addresses(self) -> tuple[str, ...]:
        """Where clients reach the worker after each start. Empty if it picks a free port."""
        own = self.endpoint or self.bind
        if own and split_endpoint(own)[1] == 0:
            return ()
        return ((own,) if own else ()) + self.relays

    def tokens(self, default: Address) -> tuple[Address, ...]:
        """The accepted tokens. `default` is the deployment's."""
        return tuple(parse_address(t) for t in self.accepted_tokens) or (default,)

    def amounts(self, token: Token) -> WorkerAmounts:
        """Return the amounts in base units of the market's token.

        Raises:
            SettingsError: an amount has no unit or is out of bounds, or credit and fees do not fit
                the prices.
        """
        counts = any(own.backend != "vllm" for _, own in self.of_cards)
        return amounts_of(self, token, counts_steps=counts)


AMOUNTS: Final = amount_fields(WorkerConfig)
"""The settings that are amounts."""


def load(
    home: Path, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> WorkerConfig:
    """Return the settings of a home.

    Raises:
        SettingsError: a setting is missing, unknown or out of bounds. Names it and its place.
    """
    file = home / "config.toml"
    made = settings.load(WorkerConfig, VARIABLES, file=file, environment=environment, flags=flags)
    card_settings.check_overriding(made.cards, overriding(flags or {}, environment))
    return made


def overriding(
    flags: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return what flags and environment say, by setting. It goes before every file."""
    return settings.overriding(WorkerConfig, VARIABLES, environment=environment, flags=flags)


def check(values: Mapping[str, Any]) -> WorkerConfig:
    """Return settings from plain values.

    Raises:
        SettingsError: a setting is missing, unknown or out of bounds.
    """
    return settings.check(WorkerConfig, values)


def to_toml(values: Mapping[str, Any]) -> str:
    """Return the text of a config.toml with these settings."""
    return settings.to_toml(WorkerConfig, values)
