"""The settings of one card of several (`[[cards]]` in config.toml)."""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import Field, field_validator

from piecework.base.settings import Settings

MAX_CARDS: Final = 16
"""More than any machine holds."""
FIRST_CARD: Final = "0"
"""The name of a worker's only card."""
MAX_VLLM_ENDPOINTS: Final = 64
"""Each is asked for its health every few seconds. More belong behind vLLM's own data parallelism.
"""
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
