"""What machine this is, how many threads it uses, and the name of its numeric behaviour."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal

import psutil
import pynvml

from piecework_model.checkpoint.loading import LoadedModel

_CPU_INFO = Path("/proc/cpuinfo")
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # cgroup v2: a number of bytes, or "max"
_MAX_PROFILE_CHARS = 160
SMALL_MODEL_PARAMETERS: Final = 50_000_000
"""Below this the matrices of one layer take microseconds. OpenMP's threads then wait for each other
longer than they work, and ten times as long when the cores are busy. Measured on two busy cores:
the bundled checkpoint is ready after 14 s with one thread and after 118 s with two.
"""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine as the operating system and NVML describe it.

    memory_bytes: of the device that denoises.
    """

    device: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int
    driver: str
    accelerators: int
    cores: int
    host_memory_bytes: int
    cpu: str
    system: str


def probe() -> Hardware:
    """Ask NVML for the first GPU and psutil for the host.

    A machine without an NVIDIA driver is a CPU machine.
    """
    cpu = _cpu_name()
    cores = psutil.cpu_count(logical=True) or 1
    host_memory = host_memory_bytes()
    system = f"{platform.system()} {platform.machine()}"
    try:
        pynvml.nvmlInit()
    except (
        pynvml.NVMLError
    ):  # no library or no driver: NVML's way to say that there is no NVIDIA GPU here
        return Hardware("cpu", cpu, host_memory, "", 0, cores, host_memory, cpu, system)
    try:
        count = int(pynvml.nvmlDeviceGetCount())
        if count == 0:
            return Hardware("cpu", cpu, host_memory, "", 0, cores, host_memory, cpu, system)
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        name = _text(pynvml.nvmlDeviceGetName(handle))
        memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return Hardware("cuda", name, memory, driver, count, cores, host_memory, cpu, system)
    finally:
        pynvml.nvmlShutdown()


def host_memory_bytes(limit: Path = _CONTAINER_LIMIT) -> int:
    """Return the memory of the host, or of this process's container if that may use less."""
    total = int(psutil.virtual_memory().total)
    try:
        text = limit.read_text(encoding="ascii").strip()
    except OSError:  # no container, or another system: the host's memory is all there is to know
        return total
    return min(total, int(text)) if text.isdecimal() else total


def engine_profile(loaded: LoadedModel, hardware: Hardware, kernels: str) -> str:
    """Name everything but the model that decides the last bits of a result. The name is stable.

    It has the device model, the engine build (ours, torch's, transformers'), precision and
    quantization, and the executor's `kernels`. On a CPU it also has the instruction set that torch
    uses and the number of threads, because both decide how sums are split. Two workers with equal
    profiles and equal model digests are expected to agree byte for byte.
    """
    import torch

    cuda = loaded.device.startswith("cuda")
    device = hardware.name if cuda else hardware.cpu
    ours, theirs = version("piecework"), version("transformers")
    build = f"piecework-{ours}+torch-{torch.__version__}+transformers-{theirs}"
    parts = [device, build, loaded.dtype, loaded.quantization, kernels]
    if not cuda:
        parts += [
            str(torch.backends.cpu.get_cpu_capability()),
            f"{torch.get_num_threads()}-threads",
        ]
    return "/".join(_slug(part) for part in parts)[:_MAX_PROFILE_CHARS]


def use_threads(loaded: LoadedModel, asked: int) -> int:
    """Set and return the number of threads: `asked`, or for 0 what fits the model.

    Call it in the thread that runs the engine.
    """
    import torch

    chosen = choose_threads(loaded.parameters, asked, torch.get_num_threads())
    torch.set_num_threads(chosen)
    return chosen


def choose_threads(parameters: int, asked: int, library: int) -> int:
    """Return `asked` unless it is 0. Then return 1 for a small model, and else `library`, torch's
    choice.
    """
    if asked:
        return asked
    return 1 if parameters < SMALL_MODEL_PARAMETERS else library


def _cpu_name() -> str:
    """Return the CPU's model name, or the architecture if the system does not tell it."""
    if _CPU_INFO.is_file():
        match = re.search(
            r"^model name\s*:\s*(.+)$",
            _CPU_INFO.read_text(encoding="utf-8", errors="replace"),
            re.MULTILINE,
        )
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def _slug(text: str) -> str:
    """Make lower case, and replace each run of other characters than letters, digits, dot, plus and
    minus by one minus.
    """
    return re.sub(r"[^a-z0-9.+-]+", "-", text.lower()).strip("-")
