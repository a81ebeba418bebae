"""The client's settings: config.toml in its home < PIECEWORK_CLIENT_* variables < flags.

The only place of the client that reads the environment. A name that does not exist is refused with
the nearest right one.

Amounts are numbers of tokens with their unit, such as `deposit = "1.5 USDC"`
(`piecework.base.written_amounts`). `ClientConfig.amounts` turns them into base units once the token
is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, field_validator, model_validator

from piecework.base.amounts import Token
from piecework.base.connections import parse_networks
from piecework.base.files import SYSTEM_DISK, Disk, private_folder, shown
from piecework.base.homes import default_home
from piecework.base.hosts import MAX_NODES, check_nodes, check_origin, check_urls
from piecework.base.settings import Settings, Variables, load
from piecework.base.written_amounts import WrittenAmount, base_units, known_units, weight
from piecework.client.errors import HomeError
from piecework_protocol.types import Amount, parse_address

VARIABLES: Final = Variables(
    "PIECEWORK_CLIENT_",
    reserved=("PIECEWORK_HOME", "PIECEWORK_PASSWORD", "PIECEWORK_MODELS"),
    neighbours=("PIECEWORK_WORKER_", "PIECEWORK_MARKET_"),
)
SELF: Final = "self"
MARKET: Final = "market"
"""Who audits: the client itself, or any worker of the market."""


@dataclass(frozen=True, slots=True)
class ClientHome:
    """The files of one client. The folder has mode 0700 and every file in it 0600.

    Attributes:
        path: The folder.
        earlier: An earlier deployment file of the same escrow, to be used in place of the home's.

    Example:
        >>> ClientHome(Path("/srv/story-bot")).wallet
        PosixPath('/srv/story-bot/wallet.json')
    """

    path: Path
    earlier: Path | None = None

    @classmethod
    def default(cls) -> Self:
        """Return the home that the command line uses: $PIECEWORK_HOME/client, or the user's data
        folder."""
        return cls(default_home("client"))

    @property
    def config(self) -> Path:
        """The settings."""
        return self.path / "config.toml"

    @property
    def deployment(self) -> Path:
        """Which market on which chain this client belongs to."""
        return self.earlier or self.path / "deployment.json"

    @property
    def wallet(self) -> Path:
        """The payer's encrypted key."""
        return self.path / "wallet.json"

    @property
    def authorizer(self) -> Path:
        """The encrypted key that signs jobs and vouchers. Without it the payer's key does."""
        return self.path / "authorizer.json"

    @property
    def store(self) -> Path:
        """The journal: channels, jobs, receipts and vouchers."""
        return self.path / "client.db"

    def check(self) -> None:
        """Check that a client was made here.

        Raises:
            HomeError: there is none.
        """
        if not self.wallet.exists():
            raise HomeError(
                f"no client in {shown(self.path)}. "
                "Make one: piecework client init --deployment FILE"
            )

    def create(self, disk: Disk = SYSTEM_DISK) -> None:
        """Make the folder, closed to others.

        Raises:
            FileError: it cannot be made, belongs to somebody else, or holds other files.
        """
        private_folder(self.path, marks=(self.wallet.name, self.store.name), disk=disk)


@dataclass(frozen=True, slots=True)
class ConfiguredAmounts:
    """The amounts of a configuration in base units. `second_is_worth` is a weight, not a payment,
    so it may be a fraction of a base unit."""

    deposit: Amount
    max_job_price: Amount | None
    max_price_per_million_output: Amount | None
    spend_per_day: Amount | None
    spend_per_month: Amount | None
    max_fee: Amount
    second_is_worth: float


class ClientConfig(Settings):
    """Everything that a client can be told. Times are seconds, amounts are numbers of tokens.

    Example:
        >>> ClientConfig(max_job_price="0.05").resume_attempts
        5
    """

    indexes: tuple[str, ...] = Field(
        default=(),
        max_length=16,
        description="URLs of indexes. Without one, the client asks the workers in the registry.",
    )
    rpc_url: str | None = Field(
        default=None,
        description="The chain's node. Only the file of a development chain names one itself.",
    )
    rpc_urls: tuple[str, ...] = Field(
        default=(),
        max_length=MAX_NODES,
        description=(
            "Several nodes of the chain, of which `rpc_quorum` must say the same about money. "
            "Empty: `rpc_url` alone."
        ),
    )
    rpc_quorum: int = Field(
        default=0,
        ge=0,
        le=MAX_NODES,
        description="How many of `rpc_urls` must agree. 0: more than half.",
    )
    rpc_timeout_s: float = Field(
        default=10.0, gt=0, le=120, description="How long one question to the chain may take."
    )

    deposit: WrittenAmount = Field(
        default="1.0",
        description="Tokens that a channel is opened or topped up with, if the balance allows.",
    )
    open_from_account: bool = Field(
        default=True,
        description=(
            "When the escrow holds too little for a new channel, open it out of the payer's own "
            "tokens by one signature, if the token knows EIP-3009."
        ),
    )
    max_fee: WrittenAmount = Field(
        default="0.5",
        description=(
            "A worker that asks more tokens than this for opening, topping up or closing a "
            "channel does not get the fee. Opening fees are shown with the price."
        ),
    )
    withdrawal_delay_s: int = Field(
        default=0,
        ge=0,
        le=30 * 86400,
        description=(
            "The withdrawal delay of new channels, if it is longer than the worker's. "
            "A longer one fits more workers and makes leaving slower."
        ),
    )
    funding_lifetime_s: int = Field(
        default=3600,
        ge=60,
        le=86400,
        description="How long a worker may submit a signed funding authorization.",
    )

    max_job_price: WrittenAmount | None = Field(
        default=None, description='No job may cost more tokens than this, such as "0.05".'
    )
    spend_per_day: WrittenAmount | None = Field(
        default=None,
        description=(
            "All jobs of one UTC day may cost this many tokens together, such as "
            '"0.5". What running jobs may still cost counts too.'
        ),
    )
    spend_per_month: WrittenAmount | None = Field(
        default=None, description="The same for a UTC month."
    )
    default_max_tokens: int = Field(
        default=4096,
        ge=1,
        le=1 << 20,
        description=(
            "The longest answer of a request that does not say, in tokens. It is shorter where "
            "the model, its context, a limit or the money leave less."
        ),
    )
    max_price_per_million_output: WrittenAmount | None = Field(
        default=None,
        description=(
            "Workers at which a million output tokens should cost more than this with their "
            'denoising steps are left out, such as "1.5".'
        ),
    )
    price_cap: float = Field(
        default=3.0,
        ge=1,
        le=1_000_000,
        description=(
            "No job may cost more than this many times the median of the workers that answer. "
            "What was paid last for a model is never too much. A request with a `max_price` of "
            "its own has that limit instead."
        ),
    )
    second_is_worth: WrittenAmount = Field(
        default="0.00005",
        description="Tokens that one second of waiting counts for when workers are ranked.",
    )
    job_lifetime_s: int = Field(
        default=900, ge=10, le=86400, description="A job ends this long after it was signed."
    )
    stall_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description=(
            "A stream without any frame for this long counts as dropped. A worker says several "
            "times a second where the job is."
        ),
    )
    start_timeout_s: float = Field(
        default=20.0,
        gt=0,
        le=3600,
        description=(
            "A worker that makes no progress for this long before its first canvas is left for "
            "the next one, and remembered."
        ),
    )
    acknowledgement_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=60,
        description="How long the worker has to confirm the last voucher of a job.",
    )
    resume_attempts: int = Field(
        default=5,
        ge=0,
        le=20,
        description="How often in a row a dropped job is presented again to its worker.",
    )
    keep_text: bool = Field(
        default=False, description="Keep prompts and answers in the client's database."
    )

    audit_rate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "The share of finished jobs of which one canvas is replayed in the background. A "
            "failed audit that a second replay confirms ends the relation with that worker."
        ),
    )
    audit_by: str = Field(
        default=SELF,
        max_length=42,
        description=(
            'Who replays: "self", with the engine on a machine like the worker\'s. "market", '
            "another worker for money. Or the address of a worker that audits first. Who is not "
            "you reads the prompt and the answer."
        ),
    )
    audit_check_rate: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description=(
            "How often a worker that audits for money is checked with a canvas that is known to be "
            "good or bad. One that misses it gets no more jobs."
        ),
    )
    audit_model: Path | None = Field(
        default=None,
        description="The checkpoint's folder for audits. Not set: the bundled one.",
    )

    gateway_api_key: str | None = Field(
        default=None,
        min_length=8,
        max_length=256,
        repr=False,
        description=(
            "A key without a budget of its own that callers of the gateway may show, for "
            "containers. `piecework gateway keys add` makes keys with budgets."
        ),
    )
    gateway_max_concurrent: int = Field(
        default=64, ge=1, le=4096, description="Requests that the gateway runs at once."
    )
    gateway_max_waiting: int = Field(
        default=256,
        ge=0,
        le=4096,
        description=(
            "Requests that wait in the gateway for their turn, when it is full or all workers are "
            "busy. More get 429."
        ),
    )
    gateway_wait_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="How long a request may wait for its turn before it gets 503.",
    )
    gateway_max_connections: int = Field(
        default=1024,
        ge=8,
        le=100_000,
        description="Connections that the gateway holds at once. One address gets half of them.",
    )
    gateway_trusted_proxies: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description="Addresses or networks of proxies whose X-Forwarded-For is believed.",
    )
    gateway_allowed_origins: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description='Origins whose web pages may use the gateway, such as "https://chat.example".',
    )
    gateway_heartbeat_s: float = Field(
        default=10.0,
        gt=0,
        le=60,
        description="A stream that is silent for this long gets a comment line.",
    )
    gateway_best_effort: bool = Field(
        default=False,
        description="Requests that do not say may go to models without seed and trace.",
    )

    gateway_strict_parameters: bool = Field(
        default=False,
        description="Refuse parameters that cannot be honoured. Otherwise they are left out, and "
        "the answer names them.",
    )
    token_usd_price: Decimal | None = Field(
        default=None,
        gt=0,
        le=1_000_000,
        description="What one token of the currency is worth in dollars. Answers and models then "
        "have their prices in dollars too.",
    )

    @field_validator("rpc_urls")
    @classmethod
    def _nodes_are_http(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_urls(value)

    @model_validator(mode="after")
    def _nodes_fit_together(self) -> Self:
        check_nodes(self.rpc_url, self.rpc_urls, self.rpc_quorum)
        return self

    @property
    def buys_audits(self) -> bool:
        """Whether audits in the background are bought of other workers."""
        return self.audit_rate > 0 and self.audit_by != SELF

    @field_validator("audit_by")
    @classmethod
    def _auditor_is_named(cls, value: str) -> str:
        return check_auditor(value)

    @field_validator("gateway_allowed_origins")
    @classmethod
    def _origins_are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_origin(origin) for origin in value)

    @field_validator("gateway_trusted_proxies")
    @classmethod
    def _proxies_are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_networks(value)
        return value

    def amounts(self, token: Token) -> ConfiguredAmounts:
        """Return the amounts in base units of a token.

        Raises:
            SettingsError: an amount has no unit, is too large, or has digits below one base unit.
        """

        def given(name: str) -> Amount | None:
            units = base_units(self, name, token)
            return None if units is None else Amount(units)

        return ConfiguredAmounts(
            deposit=Amount(known_units(self, "deposit", token)),
            max_job_price=given("max_job_price"),
            max_price_per_million_output=given("max_price_per_million_output"),
            spend_per_day=given("spend_per_day"),
            spend_per_month=given("spend_per_month"),
            max_fee=Amount(known_units(self, "max_fee", token)),
            second_is_worth=float(weight(self, "second_is_worth", token)),
        )


def check_auditor(text: str) -> str:
    """Return who audits: "self", "market", or the address of a worker.

    Raises:
        ValueError: It is none of them.
    """
    if text not in (SELF, MARKET):
        parse_address(text)
    return text


def load_config(
    file: Path,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> ClientConfig:
    """Read the settings of a client.

    Args:
        file: A TOML file. It may be absent.
        flags: Settings that win over everything else. Those that are None were not given.
        environment: Variables to read, instead of the process's.

    Returns:
        The settings, checked.

    Raises:
        SettingsError: A name does not exist, or a value cannot be used.
    """
    return load(ClientConfig, VARIABLES, file=file, environment=environment, flags=flags)
