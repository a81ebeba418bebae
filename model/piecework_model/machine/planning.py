"""From a folder and a machine to a loaded model: which precision fits, and why."""

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
"""Prompt and answer of a job that is planned for by default. A longer job takes more of the same
budget, so fewer run beside it.
"""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A loaded model, and why it is loaded as it is."""

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
    """Return what `load_planned` would choose. Reads config.json and headers only.

    context_tokens: of each of `sequences` sequences, 0 for the default. Raises CheckpointError, and
    DeviceError if nothing fits.
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
    """Load the checkpoint in the highest precision that fits, or in the one that is asked for."""
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
    """Return the tokens of a sequence: what was asked, or the default, within the model's
    context.
    """
    return min(asked_tokens or DEFAULT_CONTEXT_TOKENS, blueprint.of.max_context)


def device_of(hardware: Hardware, on: Literal["cpu", "cuda"]) -> Device:
    """Describe the memory of the GPU that was found, or of the host."""
    if on == "cuda":
        return Device("cuda", hardware.name, hardware.memory_bytes, hardware.host_memory_bytes)
    return Device("cpu", hardware.cpu, hardware.host_memory_bytes, hardware.host_memory_bytes)
