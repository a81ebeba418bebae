"""Loading a checkpoint folder in the published DiffusionGemma format.

It never uses the network and never runs code of a checkpoint. Weights come from safetensors only,
tensor by tensor (weights.py), and can be packed on the way. A folder with Python files, or one that
asks for remote code, is rejected. So is one whose files do not match its manifest.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaGenerationConfig,
)

from piecework_model import files, limits
from piecework_model.bounds import ModelLimits, check_denoising
from piecework_model.checkpoint import headers
from piecework_model.checkpoint.digests import DigestStore
from piecework_model.checkpoint.dimensions import dimensions, published_tensors
from piecework_model.checkpoint.manifest import (
    MANIFEST_FILE,
    bundled_checkpoint_path,
    covered_files,
    manifest_digest,
    manifest_text,
    verify,
    verify_without_weights,
)
from piecework_model.checkpoint.weights import Placement, load_weights
from piecework_model.errors import CheckpointError, DeviceError, InvalidRequestError
from piecework_model.failures import is_out_of_memory
from piecework_model.layers.recipes import best_recipe
from piecework_model.precision import Quantization
from piecework_model.requests import PUBLISHED_DEFAULTS, GenerationDefaults
from piecework_model.text.images import ImageProcessor, find_processor, find_settings
from piecework_model.text.tokens import TextCodec, load_codec
from piecework_protocol.limits import MAX_DENOISING_STEPS

DeviceChoice = Literal["cpu", "cuda", "auto"]
DtypeChoice = Literal["auto", "float32", "bfloat16"]

_MODEL_TYPE = "diffusion_gemma"
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """A checkpoint and how it is computed here. Its weights are not read.

    digest: the 32-byte model digest (checkpoint/manifest.py).
    dtype: of all arithmetic, and of weights that are not packed.
    quantization: "none", or how the other weights are packed.
    parameters: how many numbers the checkpoint has.
    images: how it takes images, or None. without_images: why it takes none, or empty.
    """

    name: str
    digest: bytes
    limits: ModelLimits
    defaults: GenerationDefaults
    eos_ids: frozenset[int]
    device: str
    dtype: str
    quantization: str
    parameters: int
    images: ImageProcessor | None = field(repr=False)
    without_images: str
    tokenizer: TextCodec = field(repr=False)


@dataclass(frozen=True, slots=True)
class LoadedModel(DescribedModel):
    """A checkpoint in memory, ready for an Engine."""

    model: DiffusionGemmaForBlockDiffusion = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A checkpoint folder that was looked at, and where its weights go.

    stated: the digest in its manifest file. None: it has none, and need not.
    config: of the modules. generation: what is beside it.
    """

    path: Path
    stated: bytes | None
    tensors: dict[str, headers.TensorHeader]
    config: DiffusionGemmaConfig
    generation: DiffusionGemmaGenerationConfig
    placement: Placement
    described: DescribedModel


def describe(
    path: Path | None = None,
    *,
    device: DeviceChoice = "auto",
    dtype: DtypeChoice = "auto",
    quantization: Quantization = "none",
) -> DescribedModel:
    """Say what `load` would load with these arguments, without the room that weights take.

    The weights of a folder without a manifest are read once, for the digest. Those of another may
    be at fault: `load` finds that.

    Raises:
        CheckpointError: A file is at fault.
        DeviceError: There is no such device.
    """
    known = DigestStore()
    read = _read(path, device, dtype, quantization, known=known)
    digest = read.stated or manifest_digest(manifest_text(read.path, known))
    return replace(read.described, digest=digest)


def load(
    path: Path | None = None,
    *,
    device: DeviceChoice = "auto",
    dtype: DtypeChoice = "auto",
    quantization: Quantization = "none",
    expert_budget_bytes: int | None = None,
    expected_digest: bytes | None = None,
    digests: DigestStore | None = None,
    threads: int | None = None,
) -> LoadedModel:
    """Load the checkpoint folder `path`, or the bundled one.

    dtype: "auto" is float32 on a CPU and the checkpoint's own type on an accelerator.
    quantization: packs linears and experts while they are read.
    expert_budget_bytes: for packed experts in host memory, at most so many bytes on the device.
    digests: of files that are known. The others are hashed while they are loaded.
    threads: weight files that are read at once. None is 1 on a CPU, and LOAD_THREADS elsewhere.

    Raises:
        CheckpointError: A file is at fault, or the digest is not the expected one.
        DeviceError: There is no such device, or it is too small.
    """
    known = digests or DigestStore()
    read = _read(path, device, dtype, quantization, known=known, expected_digest=expected_digest)
    model = _load_weights(read, expert_budget_bytes, known, threads)
    if read.stated is not None:
        digest = verify(read.path, known)
    else:
        digest = manifest_digest(manifest_text(read.path, known))
    _expect(read.path, digest, expected_digest)
    facts = {one.name: getattr(read.described, one.name) for one in fields(DescribedModel)}
    return LoadedModel(**{**facts, "digest": digest, "model": model})


def _read(
    path: Path | None,
    device: DeviceChoice,
    dtype: DtypeChoice,
    quantization: Quantization,
    *,
    known: DigestStore,
    expected_digest: bytes | None = None,
) -> _Folder:
    """Look at all of a folder but its weights. The digest is the stated one, or empty."""
    folder = path if path is not None else bundled_checkpoint_path()
    config, generation, tensors = _check_folder(folder)
    # A manifest in the folder pins the digest. The bundled checkpoint must have one.
    stated: bytes | None = None
    if path is None or (folder / MANIFEST_FILE).is_file():
        stated = verify_without_weights(folder, known)
        _expect(folder, stated, expected_digest)
    target = resolve_device(device)
    eos_ids, defaults = _eos_ids(generation, folder), _defaults(generation, folder)
    tokenizer = load_codec(folder, eos_ids)
    computed = _dtype(dtype, config, target, folder)
    shapes = published_tensors(dimensions(config, folder / "config.json"))
    packing = best_recipe(quantization, target, shapes, dtype=computed)
    images, without_images = _images(folder, config, tokenizer)
    of_modules, of_generation = _settings(folder)
    bounds = _limits(of_modules, defaults, images, eos_ids)
    _expect_ids(folder, tokenizer, eos_ids, bounds)
    described = DescribedModel(
        name=folder.resolve().name,
        digest=stated or b"",
        limits=bounds,
        defaults=defaults,
        eos_ids=eos_ids,
        device=str(target),
        dtype=str(computed).removeprefix("torch."),
        quantization=packing.name if packing is not None else "none",
        parameters=sum(tensor.elements for tensor in tensors.values()),
        images=images,
        without_images=without_images,
        tokenizer=tokenizer,
    )
    placement = Placement(computed, target, packing, None, images is not None)
    return _Folder(folder, stated, tensors, of_modules, of_generation, placement, described)


def _images(
    folder: Path, config: dict[str, Any], tokenizer: TextCodec
) -> tuple[ImageProcessor | None, str]:
    """Find how the checkpoint takes images, or None and why it takes none."""
    settings = find_settings(folder, config)
    if isinstance(settings, str):
        return None, settings
    found = find_processor(settings, config, tokenizer)
    return (None, found) if isinstance(found, str) else (found, "")


def _expect(folder: Path, digest: bytes, expected: bytes | None) -> None:
    if expected is not None and digest != expected:
        raise CheckpointError(folder, f"model digest is {digest.hex()}, expected {expected.hex()}")


def _expect_ids(
    folder: Path, tokenizer: TextCodec, eos_ids: frozenset[int], bounds: ModelLimits
) -> None:
    if tokenizer.vocab_size > bounds.vocab_size or max(eos_ids) >= bounds.vocab_size:
        raise CheckpointError(
            folder / "tokenizer.json", f"has more ids than the model's {bounds.vocab_size}"
        )


def _check_folder(
    folder: Path,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, headers.TensorHeader]]:
    """Reject unsafe or foreign folders.

    Returns config.json, generation_config.json and the headers of all tensors.
    """
    if not folder.is_dir():
        raise CheckpointError(folder, "this folder does not exist")
    names = sorted(entry.name for entry in folder.iterdir())
    pickles = [name for name in names if Path(name).suffix in _PICKLE_SUFFIXES]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise CheckpointError(
            folder / pickles[0], "pickled weights are refused, only safetensors are loaded"
        )
    code = [name for name in names if name.endswith(".py")]
    if code:
        raise CheckpointError(
            folder / code[0],
            "a checkpoint that brings code is refused; nothing in it is needed, remove it",
        )
    config = files.read_json(folder / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in files.read_json(folder / name):
            raise CheckpointError(folder / name, "asks for remote code (auto_map)")
    if config.get("model_type") != _MODEL_TYPE:
        raise CheckpointError(folder / "config.json", f"model_type is not {_MODEL_TYPE}")
    if "quantization_config" in config:
        raise CheckpointError(folder / "config.json", _prequantized(config["quantization_config"]))
    dimensions(config, folder / "config.json")  # within bounds, or building the modules has none
    covered_files(folder)
    return config, files.read_json(folder / "generation_config.json"), headers.read_folder(folder)


def _prequantized(written: Any) -> str:
    """Explain why packed checkpoints are rejected. docs/precision.md lists what was tried."""
    method = written.get("quant_method", "unknown") if isinstance(written, dict) else "unknown"
    return (
        f"holds packed weights ({str(method)[:40]}): no library reads the experts of this "
        "architecture "
        "from them; load the published bfloat16 weights, fp8 and int4 are made on the way"
    )


def _settings(folder: Path) -> tuple[DiffusionGemmaConfig, DiffusionGemmaGenerationConfig]:
    """Read config.json and generation_config.json as the modules take them."""
    try:
        return (
            DiffusionGemmaConfig.from_pretrained(folder, local_files_only=True),
            DiffusionGemmaGenerationConfig.from_pretrained(folder, local_files_only=True),
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        StrictDataclassError,
    ) as error:
        raise CheckpointError(folder, f"cannot be loaded: {error}") from error


def _load_weights(
    read: _Folder, expert_budget_bytes: int | None, digests: DigestStore, threads: int | None
) -> DiffusionGemmaForBlockDiffusion:
    """Load the model in evaluation mode onto its device.

    Every weight must be there, and none may be left over.
    """
    config = read.config
    placement = replace(read.placement, expert_budget_bytes=expert_budget_bytes)
    config.dtype = placement.dtype
    if threads is None:
        threads = 1 if placement.device.type == "cpu" else limits.LOAD_THREADS
    try:
        model = load_weights(
            read.path, read.tensors, config, placement, digests=digests, threads=threads
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(f"the weights do not fit {placement.device}: {error}") from error
    model.generation_config = read.generation
    return model


def resolve_device(choice: DeviceChoice) -> torch.device:
    """Return the device that a choice means on this machine. Raises DeviceError if there is
    none.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device")
    return torch.device(
        "cuda" if choice == "cuda" or (choice == "auto" and torch.cuda.is_available()) else "cpu"
    )


def _dtype(
    choice: DtypeChoice, config: dict[str, Any], device: torch.device, folder: Path
) -> torch.dtype:
    if choice != "auto":
        return _DTYPES[choice]
    if device.type == "cpu":
        return torch.float32
    name = config.get("dtype", "bfloat16")
    if name not in _DTYPES:
        raise CheckpointError(folder / "config.json", f"dtype {name} is not supported")
    return _DTYPES[name]


def _eos_ids(generation: dict[str, Any], folder: Path) -> frozenset[int]:
    value = generation.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(isinstance(token, int) and token >= 0 for token in ids):
        raise CheckpointError(
            folder / "generation_config.json", "eos_token_id is missing or malformed"
        )
    return frozenset(ids)


def _limits(
    config: DiffusionGemmaConfig,
    defaults: GenerationDefaults,
    images: ImageProcessor | None,
    end_ids: frozenset[int],
) -> ModelLimits:
    text = config.text_config
    return ModelLimits(
        text.max_position_embeddings,
        config.canvas_length,
        defaults.max_steps,
        text.vocab_size,
        images.limits if images else None,
        end_ids,
    )


def _defaults(generation: dict[str, Any], folder: Path) -> GenerationDefaults:
    """Read generation_config.json."""
    missing = PUBLISHED_DEFAULTS
    sampler = generation.get("sampler_config") or {}
    try:
        defaults = GenerationDefaults(
            max_steps=int(generation.get("max_denoising_steps", missing.max_steps)),
            temperature_start=float(generation.get("t_max", missing.temperature_start)),
            temperature_end=float(generation.get("t_min", missing.temperature_end)),
            entropy_bound=float(sampler.get("entropy_bound", missing.entropy_bound)),
            confidence_threshold=float(
                generation.get("confidence_threshold", missing.confidence_threshold)
            ),
            stability_steps=int(generation.get("stability_threshold", missing.stability_steps)),
        )
        check_denoising(defaults, MAX_DENOISING_STEPS)
    except (AttributeError, TypeError, ValueError, OverflowError, InvalidRequestError) as error:
        raise CheckpointError(
            folder / "generation_config.json", f"is malformed: {error}"
        ) from error
    return defaults
