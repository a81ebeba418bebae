"""From a folder and a machine to a loaded model: which precision fits, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from piecework_model.checkpoint.digests import DigestStore
from piecework_model.checkpoint.dimensions import Blueprint, read
from piecework_model.checkpoint.loading import DeviceChoice, LoadedModel, load
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.checkpoint.memory import Device, Kind, PrecisionPlan, choose
from piecework_model.errors import DeviceError
from piecework_model.machine.probe import Hardware, probe
from piecework_model.precision import Precision

PrecisionChoice = Precision | Literal["auto"]

DEFAULT_CONTEXT_TOKENS: Final = 8192
"""Prompt and answer of a job that is planned for by default. A longer job takes more of the same
budget, so fewer run beside it.
"""

AUTO_CPU_PARAMETERS: Final = 2_000_000_000
"""The largest model that `auto` puts on a CPU. It denoises a canvas there within seconds."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A loaded model, and why it is loaded as it is."""

    loaded: LoadedModel
    choice: PrecisionPlan


def plan(
    folder: Path | None,
    hardware: Hardware,
    *,
    device: DeviceChoice,
    precision: PrecisionChoice,
    sequences: int,
    context_tokens: int = 0,
) -> PrecisionPlan:
    """Return what `load_planned` would choose. Reads config.json and headers only.

    context_tokens: of each of `sequences` sequences, 0 for the default. Raises CheckpointError, and
    DeviceError if nothing fits or there is no such device.
    """
    blueprint = read(folder or bundled_checkpoint_path())
    on = choose_device(device, blueprint, hardware)
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
    hardware: Hardware | None = None,
    digests: DigestStore | None = None,
) -> PlannedModel:
    """Load the checkpoint in the highest precision that fits, or in the one that is asked for.

    hardware: that of this machine if not given. digests: of files that are known.
    """
    choice = plan(
        folder,
        hardware or probe(),
        device=device,
        precision=precision,
        sequences=sequences,
        context_tokens=context_tokens,
    )
    loaded = load(
        folder,
        device=choice.kind,
        dtype=choice.need.dtype,
        quantization=choice.need.quantization,
        expert_budget_bytes=choice.expert_budget_bytes,
        digests=digests,
    )
    return PlannedModel(loaded, choice)


def choose_device(choice: DeviceChoice, blueprint: Blueprint, hardware: Hardware) -> Kind:
    """Decide what a model runs on.

    `auto` is the GPU, or the CPU if there is none. A large model takes minutes a canvas on a CPU,
    and an owner who has a GPU would not see why. So only `cpu` puts one there.

    Raises:
        DeviceError: There is no such device, or `auto` would put a large model on the CPU.
    """
    if choice == "cpu" or hardware.device == "cuda":
        return "cpu" if choice == "cpu" else "cuda"
    if choice == "cuda":
        raise DeviceError(f"the settings ask for a GPU: {hardware.missing}")
    parameters = sum(math.prod(shape) for _, shape in blueprint.tensors)
    if parameters > AUTO_CPU_PARAMETERS:
        raise DeviceError(
            f"{parameters / 1e9:.1f} billion parameters are too slow for a CPU: {hardware.missing}."
            ' Set device = "cpu" to run them there all the same'
        )
    return "cpu"


def planned_context(blueprint: Blueprint, asked_tokens: int) -> int:
    """Return the tokens of a sequence: what was asked, or the default, within the model's
    context.
    """
    return min(asked_tokens or DEFAULT_CONTEXT_TOKENS, blueprint.of.max_context)


def device_of(hardware: Hardware, on: Kind) -> Device:
    """Describe the memory of the GPU that was found, or of the host."""
    host = hardware.host_memory_bytes
    if on == "cuda":
        return Device("cuda", hardware.name, hardware.memory_bytes, host, hardware.unified)
    return Device("cpu", hardware.cpu, host, host)
