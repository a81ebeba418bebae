"""A moment of a running worker: plain values. What is unknown is None.

No client's job shows text here. The owner's own test job does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from piecework_node.owner.readings import GpuReading


@dataclass(frozen=True, slots=True)
class ShownMoney:
    """How base units are shown. usd_per_token and usd_per_kwh are the owner's own settings."""

    symbol: str
    decimals: int
    usd_per_token: float | None = None
    usd_per_kwh: float | None = None


@dataclass(frozen=True, slots=True)
class LiveCanvas:
    """A job that runs or waits. place: in the queue, from 1, or 0 if it runs.

    drafted: tokens of the last draft that was shown.
    """

    job: str
    client: str
    canvas: int
    step: int
    max_steps: int
    prompt_tokens: int
    drafted: int
    place: int


@dataclass(frozen=True, slots=True)
class ShownTest:
    """The owner's own test job, the one that runs or the last one.

    state: running, done, stopped or failed, and why: why it failed. text: with the draft of the
    canvas that is denoised now. canvas: from 0. step: of that canvas.
    """

    state: str
    why: str
    card: str
    prompt: str
    text: str
    canvas: int
    step: int
    max_steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ShownCard:
    """One card of several. why: it takes no jobs. missing: why there is no reading of it."""

    name: str
    state: str
    why: str
    model: str
    precision: str
    slots: int
    active: int
    gpu: GpuReading | None
    missing: str


@dataclass(frozen=True, slots=True)
class Earned:
    """What was earned in a time, or of a client or a model. Amounts are base units.

    gross: promised by vouchers. fees: paid by clients for transactions. gas: of the worker's
    transactions. joules: that the card drew. Of a client or a model the last three are its share.
    """

    label: str
    jobs: int
    canvases: int
    gross: int
    fees: int | None = None
    gas: int | None = None
    joules: float | None = None


@dataclass(frozen=True, slots=True)
class ConsoleRates:
    """What happens in a second, over the last minute, and joules for a thousand tokens."""

    tokens: float | None = None
    steps: float | None = None
    joules_per_thousand: float | None = None


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that began, or that is over. at: Unix seconds."""

    at: int
    code: str
    text: str
    over: bool = False


@dataclass(frozen=True, slots=True)
class OpenBalance:
    """What is not settled, what may be lost, and how long the gas lasts. Base units.

    settlements_left: at the present gas price.
    """

    unsettled: int
    waiting: int
    exposure: int
    bound: int | None
    gas: str | None
    settlements_left: int | None


@dataclass(frozen=True, slots=True)
class ShownPrices:
    """What new offers ask, in base units. why: of automatic prices, by what each line is about.

    prompt, output: for a million tokens. steps: for a thousand. next_look_at: Unix seconds.
    """

    prompt: int
    output: int
    steps: int
    why: tuple[tuple[str, str], ...] = ()
    next_look_at: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a console shows. relays: "joined" for each, or why it is not."""

    at: int
    state: str
    why: tuple[str, ...]
    operator: str
    model: str
    device: str
    precision: str
    slots: int
    queue: int
    active: int
    streams: int
    canvases: tuple[LiveCanvas, ...]
    jobs: dict[str, int]
    refusals: dict[str, int]
    hours: tuple[Earned, ...]
    days: tuple[Earned, ...]
    models: tuple[Earned, ...]
    clients: tuple[Earned, ...]
    balance: OpenBalance
    rates: ConsoleRates
    cards: tuple[ShownCard, ...]
    head_age_s: float | None
    indexes: dict[str, bool]
    relays: dict[str, str]
    alerts: tuple[Alert, ...]
    money: ShownMoney
    prices: ShownPrices
    test: ShownTest | None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Snapshot:
        """Read what `to_json` makes.

        Raises:
            ValueError: it is of another version.
        """
        try:
            made = _value(cls, body)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the worker speaks of another console: {error}") from None
        if not isinstance(made, cls):
            raise ValueError("not a snapshot")
        return made


def _value(kind: Any, value: Any) -> Any:
    """Turn JSON into a value of a type that a snapshot has."""
    if get_origin(kind) in (Union, UnionType):
        inner = next(option for option in get_args(kind) if option is not type(None))
        return None if value is None else _value(inner, value)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: _value(hints[f.name], value[f.name]) for f in fields(kind)})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        return tuple(_value(get_args(kind)[0], item) for item in value)
    return value
