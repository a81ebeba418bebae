"""What machine this is, how many threads it uses, and the name of its numeric behaviour."""

from __future__ import annotations

import platform
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, Protocol

import psutil
import pynvml

from piecework_model.checkpoint.loading import LoadedModel
from piecework_protocol.limits import MAX_NAME_BYTES

_CPU_INFO = Path("/proc/cpuinfo")
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # cgroup v2: a number of bytes, or "max"
_MAX_PROCESSOR_CHARS: Final = 32
_MAX_LAST_CHARS: Final = 12  # "1024-threads"
SMALL_MODEL_PARAMETERS: Final = 50_000_000
"""Below this the matrices of one layer take microseconds. OpenMP's threads then wait for each other
longer than they work, and ten times as long when the cores are busy. Measured on two busy cores:
the bundled checkpoint is ready after 14 s with one thread and after 118 s with two.
"""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine as the operating system and torch describe it.

    memory_bytes: of the device that denoises. accelerators: GPUs that torch can use. runtime: what
    torch drives them with, such as "CUDA 13.0". unified: the GPU's memory is the host's. missing:
    why there is no GPU, or empty.
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
    runtime: str = ""
    unified: bool = False
    missing: str = ""


class Accelerators(Protocol):
    """GPUs in the order and with the memory that the library sees which will use them.

    NVML lists all cards of the machine in the order of the bus. CUDA lists the fastest first, only
    those of CUDA_VISIBLE_DEVICES, and a slice of a card (MIG) as a device of its own.
    """

    @property
    def build(self) -> str:
        """Name the library and its version."""

    @property
    def runtime(self) -> str:
        """Name what drives the GPUs. It is empty if the library was built without any."""

    def count(self) -> int:
        """Count the GPUs that can be used."""

    def name(self, index: int) -> str:
        """Name the model of a GPU."""

    def memory_bytes(self, index: int) -> int:
        """Tell the memory of a GPU, in total."""

    def is_unified(self, index: int) -> bool:
        """Say whether a GPU shares the memory of the host."""


class TorchAccelerators:
    """What torch sees: NVIDIA GPUs through CUDA, or AMD GPUs through ROCm."""

    @property
    def build(self) -> str:
        import torch

        return f"torch {torch.__version__}"

    @property
    def runtime(self) -> str:
        import torch

        if torch.version.hip:
            return f"ROCm {torch.version.hip}"
        return f"CUDA {torch.version.cuda}" if torch.version.cuda else ""

    def count(self) -> int:
        """Count them. torch warns of a driver that is too old, and then says that there is none."""
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def name(self, index: int) -> str:
        import torch

        return str(torch.cuda.get_device_properties(index).name)

    def memory_bytes(self, index: int) -> int:
        import torch

        return int(torch.cuda.get_device_properties(index).total_memory)

    def is_unified(self, index: int) -> bool:
        import torch

        # Older versions of torch do not tell.
        return bool(getattr(torch.cuda.get_device_properties(index), "is_integrated", False))


def nvidia_driver() -> str:
    """Ask NVML for the driver's version. It is empty where there is no NVIDIA driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ""
    try:
        return _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return ""
    finally:
        pynvml.nvmlShutdown()


def probe(
    accelerators: Accelerators | None = None,
    driver: Callable[[], str] = nvidia_driver,
    *,
    index: int = 0,
) -> Hardware:
    """Ask for the GPU that will be used, and psutil for the host.

    accelerators: torch's if not given. driver: tells the version of the GPU's driver. index: of
    the GPU among those that torch sees.
    """
    seen = accelerators or TorchAccelerators()
    cpu, host_memory = _cpu_name(), host_memory_bytes()
    count = seen.count() if seen.runtime else 0
    here = Hardware(
        device="cpu",
        name=cpu,
        memory_bytes=host_memory,
        driver="",
        accelerators=count,
        cores=psutil.cpu_count(logical=True) or 1,
        host_memory_bytes=host_memory,
        cpu=cpu,
        system=f"{platform.system()} {platform.machine()}",
        runtime=seen.runtime,
    )
    if not count:
        return replace(here, missing=_why_none(seen))
    if index >= count:
        return replace(here, missing=f"there are {count} GPUs, and none has number {index}")
    return replace(
        here,
        device="cuda",
        name=seen.name(index),
        memory_bytes=seen.memory_bytes(index),
        driver=driver(),
        unified=seen.is_unified(index),
    )


def _why_none(seen: Accelerators) -> str:
    """Explain in one line why there is no GPU."""
    if not seen.runtime:
        return f"{seen.build} is built without CUDA and ROCm"
    return (
        f"{seen.build} finds no GPU: there is none, its driver is too old for {seen.runtime}, or "
        "CUDA_VISIBLE_DEVICES hides it"
    )


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
    uses and the number of threads, because both decide how sums are split. Of a model that takes
    images it has Pillow's version, which decides their pixels. Two workers with equal
    profiles and equal model digests are expected to agree byte for byte.
    """
    import torch

    cuda = loaded.device.startswith("cuda")
    parts = [*_known_parts(hardware, loaded.device, loaded.dtype, loaded.quantization), kernels]
    if loaded.images is not None:
        parts.append(f"pillow-{version('pillow')}")
    if not cuda:
        parts += [
            str(torch.backends.cpu.get_cpu_capability()),
            f"{torch.get_num_threads()}-threads",
        ]
    return "/".join(_slug(part) for part in parts)


def _known_parts(hardware: Hardware, device: str, dtype: str, quantization: str) -> list[str]:
    """The parts of a profile that are known before anything is loaded."""
    import torch

    name = hardware.name if device.startswith("cuda") else hardware.cpu
    ours, theirs = version("piecework"), version("transformers")
    build = f"piecework-{ours}+torch-{torch.__version__}+transformers-{theirs}"
    return [_short_name(name), build, dtype, quantization]


def _short_name(name: str) -> str:
    """Keep the name of a processor so short that a shortened profile still has its precision."""
    slug = _slug(name)
    if len(slug) <= _MAX_PROCESSOR_CHARS:
        return slug
    digest = sha256(slug.encode()).hexdigest()[:6]
    return f"{slug[: _MAX_PROCESSOR_CHARS - 7]}-{digest}"


def profile_start(hardware: Hardware, device: str, dtype: str, quantization: str) -> str:
    """Give the start of the profile that an engine here would have.

    It ends with a slash. What follows shows only once the model is loaded.
    """
    return "".join(
        f"{_slug(part)}/" for part in _known_parts(hardware, device, dtype, quantization)
    )


def short_profile(profile: str) -> str:
    """Shorten the profile to the room of an offer. A longer one keeps its start, a digest of all of
    it, and the number of threads, which an audit reads.
    """
    if len(profile.encode()) <= MAX_NAME_BYTES:
        return profile
    _, _, last = profile.rpartition("/")
    end = f"-{sha256(profile.encode()).hexdigest()[:12]}"
    if last.endswith("-threads"):
        end = f"{end}/{last[-_MAX_LAST_CHARS:]}"
    return profile.encode()[: MAX_NAME_BYTES - len(end)].decode(errors="ignore") + end


@dataclass(frozen=True, slots=True)
class ProfilePrecision:
    """What a profile says of the worker's precision. threads: on a CPU, else 0."""

    dtype: str
    quantization: str
    threads: int


def read_precision(profile: str) -> ProfilePrecision | None:
    """Read the precision out of a profile, or None if it is not one of `engine_profile`."""
    parts = profile.split("/")
    if len(parts) < 5 or parts[2] not in ("float32", "bfloat16"):
        return None
    count = parts[-1].removesuffix("-threads") if parts[-1].endswith("-threads") else ""
    known = count.isascii() and count.isdecimal() and len(count) < 6
    return ProfilePrecision(parts[2], parts[3], int(count) if known else 0)


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
