"""From a folder and a machine to a loaded model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from piecework_model.checkpoint.dimensions import released_blueprint
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.checkpoint.memory import GIB
from piecework_model.errors import CheckpointError, DeviceError
from piecework_model.machine import planning
from piecework_model.machine.planning import DEFAULT_CONTEXT_TOKENS, device_of, load_planned, plan
from piecework_model.machine.probe import Hardware, probe

WITH_CARD = Hardware("cuda", "a card", 24 * GIB, "1", 1, 8, 64 * GIB, "a processor", "Linux x86_64")


def test_the_bundled_model_is_loaded_as_planned() -> None:
    planned = load_planned(None, device="cpu", precision="auto", sequences=2)
    assert (planned.loaded.dtype, planned.loaded.quantization) == ("float32", "none")
    assert planned.choice.need.context == 1024, "never more than the model's context"
    packed = load_planned(None, device="cpu", precision="int4", sequences=1, context_tokens=512)
    assert packed.loaded.quantization == "int4-g64+fp8"
    assert packed.choice.need.context == 512
    assert "as asked" in packed.choice.reason


def test_a_host_without_room_is_refused_before_anything_is_loaded() -> None:
    tiny = replace(probe(), host_memory_bytes=2**20)
    with pytest.raises(DeviceError, match="does not fit"):
        plan(bundled_checkpoint_path(), tiny, device="cpu", precision="auto", sequences=1)


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(CheckpointError, match="this folder does not exist"):
        plan(Path("/nonexistent"), probe(), device="cpu", precision="auto", sequences=1)


def test_a_gpu_has_its_own_memory_and_the_hosts_behind_it() -> None:
    device = device_of(WITH_CARD, "cuda")
    assert (device.name, device.memory_bytes, device.host_memory_bytes) == (
        "a card",
        24 * GIB,
        64 * GIB,
    )
    host = device_of(WITH_CARD, "cpu")
    assert (host.name, host.memory_bytes, host.usable_host_bytes) == ("a processor", 64 * GIB, 0)


def test_the_default_context_is_that_of_a_long_chat() -> None:
    assert planning.planned_context(released_blueprint(), 0) == DEFAULT_CONTEXT_TOKENS
    assert planning.planned_context(released_blueprint(), 10**6) == 262_144
