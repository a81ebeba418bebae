"""From a folder and a machine to a loaded model: the precision that fits, chosen and explained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from piecework_model.checkpoint.dimensions import Blueprint, read
from piecework_model.checkpoint.loading import DeviceChoice, LoadedModel, load, resolve_device
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.checkpoint.memory import Device, PrecisionPlan, choose
from piecework_model.machine.probe import Hardware, probe
from piecework_model.precision import Precision

PrecisionChoice = Precision | Literal["auto"]

DEFAULT_CONTEXT_TOKENS: Final = 8192
"""Prompt and answer of a job that is planned for unless told. A longer one takes more of the same
budget: fewer run beside it."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A loaded model and why it is loaded as it is."""

    loaded: LoadedModel
    choice: PrecisionPlan


def plan(
    folder: Path | None,
    hardware: Hardware,
    *,
    on: Literal["cpu", "cuda"],
    precision: PrecisionChoice,
    sequences: int,
    context_tokens: int = 0,
) -> PrecisionPlan:
    """What `load_planned` would choose. context_tokens: of each of `sequences` sequences, 0 for the default.

    Reads config.json and headers only. Raises CheckpointError, and DeviceError when nothing fits.
    """
    blueprint = read(folder or bundled_checkpoint_path())
    context = planned_context(blueprint, context_tokens)
    return choose(
        blueprint, device_of(hardware, on), sequences=sequences, context=context, asked=precision
    )


def load_planned(
    folder: Path | None,
    *,
    device: DeviceChoice,
    precision: PrecisionChoice,
    sequences: int,
    context_tokens: int = 0,
) -> PlannedModel:
    """Loads the checkpoint in the most faithful precision that fits, or in the one that is asked
    for."""
    on = resolve_device(device).type
    choice = plan(
        folder,
        probe(),
        on="cuda" if on == "cuda" else "cpu",
        precision=precision,
        sequences=sequences,
        context_tokens=context_tokens,
    )
    loaded = load(
        folder,
        device=device,
        dtype=choice.need.dtype,
        quantization=choice.need.quantization,
        expert_budget_bytes=choice.expert_budget_bytes,
    )
    return PlannedModel(loaded, choice)


def planned_context(blueprint: Blueprint, asked_tokens: int) -> int:
    """Tokens of a sequence: what was asked, or the default, and never more than the model's context."""
    return min(asked_tokens or DEFAULT_CONTEXT_TOKENS, blueprint.of.max_context)


def device_of(hardware: Hardware, on: Literal["cpu", "cuda"]) -> Device:
    """The memory of the GPU that was found, or of the host."""
    if on == "cuda":
        return Device("cuda", hardware.name, hardware.memory_bytes, hardware.host_memory_bytes)
    return Device("cpu", hardware.cpu, hardware.host_memory_bytes, hardware.host_memory_bytes)
