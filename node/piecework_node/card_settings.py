"""The settings of one card of several (`[[cards]]` in config.toml)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Protocol, TypeVar

from pydantic import Field, ValidationError, field_validator

from piecework.base.errors import SettingsError
from piecework.base.settings import Settings

MAX_CARDS: Final = 16
"""More than any machine holds."""
FIRST_CARD: Final = "0"
"""The name of a worker's only card."""
MAX_VLLM_ENDPOINTS: Final = 64
"""Each is asked for its health every few seconds. More belong behind vLLM's own data parallelism.
"""
S = TypeVar("S", bound=Settings)
GpuNumber = Annotated[int, Field(ge=0, le=63)]
"""As nvidia-smi -L counts them."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class CardSettings(Settings):
    """One card of several: what differs from the settings outside of the table.

    A setting that is not there is the worker's own.
    """

    name: str = Field(
        default="",
        description="as metrics and commands call the card. Empty: its place, from 0",
    )
    slots: int | None = Field(default=None, ge=1, le=256)
    queue: int | None = Field(default=None, ge=0, le=1024)
    backend: Literal["diffusion", "vllm"] | None = None
    vllm_endpoints: tuple[str, ...] | None = Field(default=None, max_length=MAX_VLLM_ENDPOINTS)
    vllm_model: str | None = Field(default=None, max_length=256)
    vllm_api_key: str | None = Field(default=None, max_length=512, repr=False)
    vllm_programs: tuple[str, ...] | None = Field(default=None, max_length=16)
    model: str | None = None
    device: Literal["auto", "cpu", "cuda"] | None = None
    precision: Literal["auto", "float32", "bfloat16", "fp8", "int4"] | None = None
    planned_context: int | None = Field(default=None, ge=0, le=2**24)
    threads: int | None = Field(default=None, ge=0, le=1024)
    gpu_number: int | None = Field(
        default=None,
        ge=0,
        le=63,
        description="of the card, as nvidia-smi -L counts them. Its engine sees no other card",
    )
    gpu_numbers: tuple[GpuNumber, ...] | None = Field(default=None, max_length=MAX_CARDS)
    pause_schedule: tuple[str, ...] | None = Field(default=None, max_length=32)
    pause_gpu_share: int | None = Field(default=None, ge=0, le=100)
    pause_gpu_memory_mib: int | None = Field(default=None, ge=0, le=2**24)
    pause_temperature_c: int | None = Field(default=None, ge=0, le=150)
    pause_power_w: int | None = Field(default=None, ge=0, le=10_000)
    pause_frees_memory: bool | None = None

    @field_validator("name")
    @classmethod
    def _name_is_a_label(cls, value: str) -> str:
        if value and not _NAME.fullmatch(value):
            raise ValueError("the name of a card has up to 32 small letters, digits and dashes")
        return value


class OwnSettings(Protocol):
    """What decides whether a card needs a number: its settings with those outside of its table."""

    @property
    def backend(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def gpu_numbers(self) -> tuple[int, ...]: ...

    @property
    def names_gpus(self) -> bool: ...

    @property
    def watches_gpus(self) -> bool: ...


def card_names(cards: Sequence[CardSettings]) -> tuple[str, ...]:
    """Return the name of each card. One without has its place, from 0."""
    return tuple(card.name or str(place) for place, card in enumerate(cards))


def with_cards(
    model: type[S], common: Mapping[str, Any], cards: Sequence[CardSettings]
) -> tuple[tuple[str, S], ...]:
    """Return each card's name, and the settings outside of tables with those of its table.

    Raises:
        ValueError: they do not go together. The text names the card.
    """
    made = []
    for name, card in zip(card_names(cards), cards, strict=True):
        given = card.model_dump(exclude_none=True, exclude={"name"})
        try:
            made.append((name, model.model_validate({**common, **given})))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            said = fault["ctx"]["error"] if "ctx" in fault else fault["msg"]
            raise ValueError(f"card {name}: {said}") from None
    return tuple(made)


def check_cards(cards: Sequence[CardSettings], settings: Sequence[OwnSettings]) -> None:
    """Hold cards to each other. settings: of each card.

    Raises:
        ValueError: two cards have a name or a GPU in common, or one names no GPU.
    """
    names, numbers = set[str](), set[int]()
    for name, card, own in zip(card_names(cards), cards, settings, strict=True):
        if name in names:
            raise ValueError(f"two cards are called {name}")
        names.add(name)
        if own.device == "cpu" and own.backend != "vllm":
            continue
        used = own.gpu_numbers
        if own.backend == "vllm":
            if own.watches_gpus and not own.names_gpus:
                raise ValueError(f"card {name} has pause rules for GPUs and needs gpu_numbers")
        elif card.gpu_number is None:
            raise ValueError(f'card {name} needs gpu_number, or device = "cpu"')
        else:
            used = (card.gpu_number,)
        for number in used:
            if number in numbers:
                raise ValueError(f"two cards have gpu_number {number}")
            numbers.add(number)


def tables_with(cards: Sequence[CardSettings], name: str) -> tuple[str, ...]:
    """Return the tables of config.toml that have a setting, as a person calls them."""
    return tuple(
        f"table {place} of [[cards]] (card {known})"
        for place, (known, card) in enumerate(zip(card_names(cards), cards, strict=True), start=1)
        if name in card.model_fields_set
    )


def check_overriding(cards: Sequence[CardSettings], names: Collection[str]) -> None:
    """Refuse a flag or a variable that a table would override in silence.

    Raises:
        SettingsError: a card has a value of its own for one of these settings.
    """
    for name in sorted(names):
        tables = tables_with(cards, name)
        if tables:
            raise SettingsError(
                f"{name}: a flag or a variable sets it, and {' and '.join(tables)} of config.toml "
                "has it too. Leave out one of them"
            )
