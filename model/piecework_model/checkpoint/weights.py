"""From safetensors files into a model's modules, one tensor at a time.

The module tree is built without memory (torch's meta device). Then each weight is read, converted
or packed, put where it stays, and freed, experts one by one. So the peak is the finished model and
one tensor more. Encoder and decoder of DiffusionGemma are one set of weights under two names. A
weight of either goes into both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from piecework_model import precision
from piecework_model.checkpoint.digests import DigestStore, HashedReading
from piecework_model.checkpoint.headers import FLOATS, TensorHeader
from piecework_model.errors import CheckpointError, DeviceError
from piecework_model.layers.experts import (
    MATRICES,
    DeviceBytes,
    ExpertBytes,
    ExpertLayout,
    Matrix,
    QuantizedExperts,
)
from piecework_model.layers.offload import ExpertCache, HostBytes
from piecework_model.layers.quantization import Codec, QuantizedLinear, Recipe

_ENCODER, _DECODER = "model.encoder.language_model.", "model.decoder."


@dataclass(frozen=True, slots=True)
class Placement:
    """How and where weights are kept.

    recipe: packs linears and experts, or None. expert_budget_bytes: None keeps the experts on the
    device. A number keeps them in host memory, with a cache of at most that many bytes on the
    device. sees_images: whether the vision tower is used. If not, it stays in host memory.
    """

    dtype: torch.dtype
    device: torch.device
    recipe: Recipe | None
    expert_budget_bytes: int | None = None
    sees_images: bool = False

    def device_of(self, name: str) -> torch.device:
        """Return where the weight or buffer of this published name is kept."""
        unused = precision.is_vision(name) and not self.sees_images
        return torch.device("cpu") if unused else self.device


def load_weights(
    folder: Path,
    headers: Mapping[str, TensorHeader],
    config: DiffusionGemmaConfig,
    placement: Placement,
    *,
    digests: DigestStore | None = None,
    threads: int = 1,
) -> DiffusionGemmaForBlockDiffusion:
    """Build the model of `config` with the weights of `headers`, ready to run.

    Every weight must be there, and none may be left over. Raises CheckpointError, which names the
    file at fault.

    digests: files that it does not know are hashed on the way, so that each is read once. threads:
    files that are read at once. Each thread holds one tensor more than the finished model.
    """
    with torch.device("meta"):
        model = DiffusionGemmaForBlockDiffusion(config)
    model.set_experts_implementation("eager")  # one expert after the other, in a fixed order
    names = _names(model)
    _check(folder, headers, names, model)
    try:
        packed = _Packed(model, placement)
    except ValueError as error:
        raise DeviceError(f"the experts cannot be kept so: {error}") from error
    _compute_buffers(model, placement)

    def load_file(file: Path, tensors: Sequence[TensorHeader]) -> None:
        with _opened(file) as stream, _hashing(file, digests) as reader:
            for header in tensors:
                if reader is not None:
                    reader.advance(header.end)  # what was hashed a moment ago is read from memory
                if header.name != next(name for name in names[header.name] if name in headers):
                    _require_equal(headers, names[header.name], header)  # stored under two names
                elif header.name in packed:
                    packed.fill(header, stream)
                else:
                    _assign(model, names[header.name], stream.get_tensor(header.name), placement)

    _each(load_file, _by_file(headers), threads)
    _require_complete(model)
    return model.eval().requires_grad_(False)


def _each(
    load_file: Callable[[Path, Sequence[TensorHeader]], None],
    by_file: Mapping[Path, Sequence[TensorHeader]],
    threads: int,
) -> None:
    """Load all files, some at once. The error of the first file that fails is raised."""
    if threads == 1 or len(by_file) == 1:
        for file, tensors in by_file.items():
            load_file(file, tensors)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="load") as pool:
        futures = [pool.submit(load_file, *item) for item in by_file.items()]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _hashing(file: Path, digests: DigestStore | None) -> Iterator[HashedReading | None]:
    """Hash a file beside its loading, if its digest is not known."""
    if digests is None or digests.known(file) is not None:
        yield None
        return
    with digests.reading(file) as reader:
        yield reader


def _names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Map each name of a weight to all names of the same weight, sorted."""
    aliases: dict[int, list[str]] = defaultdict(list)
    for name, tensor in model.state_dict(keep_vars=True).items():
        aliases[id(tensor)].append(name)
    return {name: tuple(sorted(group)) for group in aliases.values() for name in group}


def _check(
    folder: Path,
    headers: Mapping[str, TensorHeader],
    names: Mapping[str, tuple[str, ...]],
    model: nn.Module,
) -> None:
    """Compare names, shapes and types before anything is read."""
    unexpected = [f"{h.name} in {h.path.name}" for h in headers.values() if h.name not in names]
    _refuse(folder, "unexpected", unexpected)
    _refuse(
        folder,
        "missing",
        sorted({group[0] for group in names.values() if headers.keys().isdisjoint(group)}),
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _refuse(
        folder,
        "mismatched",
        [
            f"{header.name} in {header.path.name} is {list(header.shape)}, not "
            f"{list(shapes[header.name])}"
            for header in headers.values()
            if header.shape != shapes[header.name]
        ],
    )
    for header in headers.values():
        if header.dtype not in FLOATS:
            raise CheckpointError(
                header.path, f"{header.name} is {header.dtype}, not one of {sorted(FLOATS)}"
            )


def _refuse(folder: Path, kind: str, keys: list[str]) -> None:
    if keys:
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise CheckpointError(folder, f"{kind} keys in the weights: {', '.join(keys[:3])}{more}")


class _Packed:
    """The packed modules of a tree, which replace transformers' own, and how to fill them."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion, placement: Placement) -> None:
        self._device = placement.device
        self._linears: dict[str, QuantizedLinear] = {}
        self._experts: dict[str, tuple[QuantizedExperts, Matrix]] = {}
        recipe = placement.recipe
        if recipe is None:
            if placement.expert_budget_bytes is not None:
                raise ValueError("only packed experts can be in host memory: ask for fp8 or int4")
            return
        for name in model.state_dict():
            if precision.is_linear(name):
                self._replace_linear(model, name.removesuffix(".weight"), recipe.linears)
        self._replace_experts(model, recipe.experts, placement)

    def _replace_linear(self, model: nn.Module, path: str, codec: Codec) -> None:
        old = model.get_submodule(path)
        if not isinstance(old, nn.Linear) or old.bias is not None:
            raise AssertionError(f"{path} is not a linear without bias")
        module = QuantizedLinear(old.in_features, old.out_features, codec)
        for place in _places(path):
            model.set_submodule(place, module)
            self._linears[f"{place}.weight"] = module

    def _replace_experts(
        self, model: DiffusionGemmaForBlockDiffusion, codec: Codec, placement: Placement
    ) -> None:
        text = model.config.text_config
        layout = ExpertLayout(text.hidden_size, text.moe_intermediate_size, codec)
        layers = len(model.model.decoder.layers)
        cache = None
        if placement.expert_budget_bytes is not None:
            population = layers * text.num_experts
            cache = ExpertCache(
                placement.expert_budget_bytes, layout.expert_bytes, population, placement.device
            )
        for number in range(layers):
            path = f"{_DECODER}layers.{number}.experts"
            source: ExpertBytes = (
                HostBytes(number, text.num_experts, cache)
                if cache is not None
                else DeviceBytes(text.num_experts, layout.expert_bytes, placement.device)
            )
            activation: Callable[[Tensor], Tensor] = model.get_submodule(path).act_fn
            module = QuantizedExperts(text.num_experts, layout, codec, activation, source)
            for place in _places(path):
                model.set_submodule(place, module)
                self._experts |= {f"{place}.{matrix}": (module, matrix) for matrix in MATRICES}

    def __contains__(self, name: str) -> bool:
        return name in self._linears or name in self._experts

    def fill(self, header: TensorHeader, stream: Any) -> None:
        """Pack one tensor of a file, experts one by one."""
        try:
            if header.name in self._linears:
                self._linears[header.name].fill(stream.get_tensor(header.name), self._device)
                return
            module, matrix = self._experts[header.name]
            rows = stream.get_slice(header.name)
            for expert in range(header.shape[0]):
                module.fill(matrix, expert, rows[expert], self._device)
        except ValueError as error:
            raise CheckpointError(header.path, f"{header.name}: {error}") from error


def _places(path: str) -> list[str]:
    """List the decoder's path of a module, and the encoder's if it has the same one."""
    twin = _ENCODER + path.removeprefix(_DECODER)
    shared = path.startswith(f"{_DECODER}layers.")
    return [path, twin] if shared else [path]


def _assign(model: nn.Module, names: tuple[str, ...], value: Tensor, placement: Placement) -> None:
    """Put one plain weight into every module that has it.

    It is copied, because what is read is in the mapped file.
    """
    device = placement.device_of(names[0])
    tensor = value.to(device=device, dtype=placement.dtype, copy=True)
    parameter = nn.Parameter(tensor, requires_grad=False)
    for name in names:
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        is_parameter = isinstance(getattr(module, attribute), nn.Parameter)
        setattr(module, attribute, parameter if is_parameter else tensor)


def _compute_buffers(model: nn.Module, placement: Placement) -> None:
    """Compute what no checkpoint holds: rotary frequencies and the embedding's scale."""
    stored = model.state_dict().keys()
    for path, module in model.named_modules():
        computed = [
            name
            for name, _ in module.named_buffers(recurse=False)
            if f"{path}.{name}" not in stored
        ]
        if not computed or isinstance(module, QuantizedLinear | DeviceBytes):
            continue
        device = placement.device_of(f"{path}.")
        if computed == ["embed_scale"]:
            scale = torch.tensor(module.scalar_embed_scale, dtype=placement.dtype, device=device)
            module.register_buffer("embed_scale", scale, persistent=False)
            continue
        made = type(module)(module.config).to(device)  # a rotary embedding, this time with memory
        for name in computed:
            module.register_buffer(name, made.get_buffer(name), persistent=False)


def _require_complete(model: nn.Module) -> None:
    """Check that no tensor is without memory. A forward pass would fail on it, or silently
    skip it.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise AssertionError(f"no weights for {', '.join(empty[:3])}")


def _require_equal(
    headers: Mapping[str, TensorHeader], group: tuple[str, ...], header: TensorHeader
) -> None:
    """Check that a weight which is stored under two names is one weight."""
    first = headers[next(name for name in group if name in headers)]
    with _opened(first.path) as one, _opened(header.path) as other:
        if not torch.equal(one.get_tensor(first.name), other.get_tensor(header.name)):
            raise CheckpointError(
                header.path, f"{header.name} differs from {first.name}, with which it is tied"
            )


def _by_file(headers: Mapping[str, TensorHeader]) -> dict[Path, list[TensorHeader]]:
    """List the tensors of each file in the order of their bytes, with files sorted."""
    found: dict[Path, list[TensorHeader]] = defaultdict(list)
    for header in sorted(headers.values(), key=lambda header: (header.path, header.end)):
        found[header.path].append(header)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Map a safetensors file. Errors in reading it name it."""
    try:
        with safe_open(path, framework="pt") as stream:
            yield stream
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
