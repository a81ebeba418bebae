"""The probe on machines that are not here: what torch sees is what is planned for and named."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from piecework_model.checkpoint.dimensions import Blueprint, released_blueprint
from piecework_model.checkpoint.loading import DeviceChoice, LoadedModel
from piecework_model.checkpoint.memory import GIB, choose
from piecework_model.errors import CheckpointError, DeviceError
from piecework_model.machine.planning import choose_device, device_of, load_planned
from piecework_model.machine.probe import Hardware, engine_profile, probe

HOST_BYTES = 128 * GIB


@dataclass(frozen=True)
class Cards:
    """GPUs as torch would list them: names and GiB."""

    cards: tuple[tuple[str, float], ...] = ()
    runtime: str = "CUDA 13.0"
    unified: bool = False
    build: str = "torch 2.13.0"

    def count(self) -> int:
        return len(self.cards)

    def name(self, index: int) -> str:
        return self.cards[index][0]

    def memory_bytes(self, index: int) -> int:
        return int(self.cards[index][1] * GIB)

    def is_unified(self, index: int) -> bool:
        return self.unified and index == 0


def seen(cards: Cards, driver: str = "580.95") -> Hardware:
    """This machine with other GPUs and much memory."""
    return replace(probe(cards, lambda: driver), host_memory_bytes=HOST_BYTES)


def test_the_first_card_that_torch_lists_is_probed_and_named(bundled: LoadedModel) -> None:
    """CUDA_VISIBLE_DEVICES=1 leaves one card, and NVML's first is another one."""
    hardware = seen(Cards((("NVIDIA GeForce RTX 5090", 32), ("NVIDIA GeForce RTX 3060", 12))))
    assert (hardware.device, hardware.accelerators) == ("cuda", 2)
    assert (hardware.name, hardware.memory_bytes) == ("NVIDIA GeForce RTX 5090", 32 * GIB)
    assert (hardware.runtime, hardware.driver, hardware.missing) == ("CUDA 13.0", "580.95", "")
    profile = engine_profile(replace(bundled, device="cuda"), hardware, "fused")
    assert profile.startswith("nvidia-geforce-rtx-5090/")


def test_a_slice_of_a_card_has_its_own_memory() -> None:
    hardware = seen(Cards((("NVIDIA H100 80GB HBM3 MIG 2g.20gb", 20),)))
    choice = choose(released_blueprint(), device_of(hardware, "cuda"), sequences=1, context=8192)
    assert choice.need.device_bytes <= 18.5 * GIB


def test_unified_memory_is_planned_once_and_leaves_the_host_its_share() -> None:
    hardware = seen(Cards((("NVIDIA GB10", 120),), unified=True))
    device = device_of(hardware, "cuda")
    assert device.usable_host_bytes == 0, "there is no other memory to put experts into"
    assert 85 * GIB < device.usable_bytes < 90 * GIB
    small = device_of(replace(hardware, host_memory_bytes=60 * GIB), "cuda")
    assert small.usable_bytes < 45 * GIB, "a container's limit counts"


def test_an_amd_card_has_its_own_memory_and_no_nvidia_driver(bundled: LoadedModel) -> None:
    hardware = seen(Cards((("AMD Radeon RX 7900 XTX", 24),), runtime="ROCm 7.1"), driver="")
    assert (hardware.device, hardware.memory_bytes) == ("cuda", 24 * GIB)
    choice = choose(released_blueprint(), device_of(hardware, "cuda"), sequences=2, context=8192)
    assert choice.need.precision == "int4", "not what 128 GiB of host memory would hold"
    assert "radeon" in engine_profile(replace(bundled, device="cuda"), hardware, "fused")


@pytest.mark.parametrize(
    ("cards", "reason"),
    [
        (Cards(runtime="", build="torch 2.13.0+cpu"), "torch 2.13.0+cpu is built without CUDA"),
        (Cards((("NVIDIA GeForce RTX 4090", 24),), runtime=""), "is built without CUDA"),
        (Cards(), "its driver is too old for CUDA 13.0"),
    ],
)
def test_auto_refuses_the_cpu_for_a_large_model_and_says_why_there_is_no_gpu(
    cards: Cards, reason: str
) -> None:
    hardware = seen(cards)
    assert (hardware.device, hardware.accelerators) == ("cpu", 0)
    large = released_blueprint()
    for choice in ("auto", "cuda"):
        with pytest.raises(DeviceError, match=re.escape(reason)):
            choose_device(choice, large, hardware)
    assert choose_device("cpu", large, hardware) == "cpu"


@pytest.mark.parametrize(
    ("choice", "expected"), [("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")]
)
def test_with_a_gpu_only_cpu_means_the_cpu(choice: DeviceChoice, expected: str) -> None:
    hardware = seen(Cards((("NVIDIA H100 80GB HBM3", 80),)))
    assert choose_device(choice, released_blueprint(), hardware) == expected


def test_a_small_model_runs_on_a_cpu_without_being_asked_to() -> None:
    of = released_blueprint().of
    small = Blueprint(of, (("model.decoder.norm.weight", (2_000_000_000,)),))
    assert choose_device("auto", small, seen(Cards())) == "cpu"


def test_a_gpu_that_is_asked_for_and_not_there_stops_the_load() -> None:
    with pytest.raises(DeviceError, match=r"the settings ask for a GPU: torch .* finds no GPU"):
        load_planned(None, device="cuda", precision="auto", sequences=1, hardware=seen(Cards()))


def test_a_folder_is_read_before_the_device_is_judged(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_planned(tmp_path, device="auto", precision="auto", sequences=1)
