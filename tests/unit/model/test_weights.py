"""Weights on their way from files into the model: the right ones, one at a time, both halves
tied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model import precision
from piecework_model.checkpoint import headers, manifest, memory
from piecework_model.checkpoint.dimensions import read
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.engine.engine import Engine
from piecework_model.errors import CheckpointError, DeviceError
from piecework_model.layers.quantization import Fp8, QuantizedLinear
from tests.support.model.allocations import allocations
from tests.support.model.model_runs import canvases, make_request, run, run_alone
from tests.support.model.small_models import write_small

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The bundled checkpoint without its manifest, to be damaged."""
    for path in manifest.covered_files(bundled_checkpoint_path()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def rewrite(folder: Path, change: Change) -> Path:
    """Changes the tensors of a folder's one weight file, and returns its path."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def everything(model: torch.nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_parameter_and_buffer_is_that_of_from_pretrained(small: Path, dtype: Any) -> None:
    theirs = DiffusionGemmaForBlockDiffusion.from_pretrained(
        small, dtype=getattr(torch, dtype), local_files_only=True
    )
    ours, expected = everything(load(small, device="cpu", dtype=dtype).model), everything(theirs)
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def bytes_of(model: torch.nn.Module) -> int:
    """Bytes of all tensors that are registered, each once."""
    tensors = {tensor.data_ptr(): tensor for tensor in everything(model).values() if tensor.numel()}
    return sum(tensor.nbytes for tensor in tensors.values())


PRECISIONS = [
    ("float32", "none"),
    ("bfloat16", "none"),
    ("bfloat16", "fp8"),
    ("bfloat16", "int4"),
]


@pytest.fixture(scope="module")
def many_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("many") / "model", layers=6, experts=32)


@pytest.mark.parametrize(("dtype", "quantization"), PRECISIONS)
def test_loading_holds_the_finished_model_and_one_matrix(
    many_experts: Path, dtype: Any, quantization: Any
) -> None:
    loaded = allocations(
        lambda: load(many_experts, device="cpu", dtype=dtype, quantization=quantization),
        mapped=many_experts.glob("*.safetensors"),
    )
    kept = bytes_of(loaded.result.model)
    shapes = [
        h.shape for h in headers.read_folder(many_experts).values() if precision.is_experts(h.name)
    ]
    matrix = max(shape[1] * shape[2] for shape in shapes) * 4
    # Packing takes a matrix in float32 and some arrays of its size; copying takes nothing but the
    # copy.
    beside = loaded.peak_bytes - kept
    assert beside < (8 * matrix if quantization != "none" else 0) + 50_000
    assert 8 * matrix < min(shape[0] for shape in shapes) * matrix / 3, (
        "one tensor would hide the bound"
    )
    assert loaded.kept_bytes < kept + 50_000


@pytest.mark.parametrize(("dtype", "quantization"), PRECISIONS)
def test_the_plan_counts_exactly_what_is_loaded(small: Path, dtype: Any, quantization: Any) -> None:
    blueprint = read(small)
    planned = memory.weights(blueprint.tensors, dtype, quantization)
    model = load(small, device="cpu", dtype=dtype, quantization=quantization).model
    stored = model.state_dict()
    computed = bytes_of(model) - sum(
        t.nbytes for t in {t.data_ptr(): t for t in stored.values()}.values()
    )
    assert (
        planned.shared_bytes + planned.experts_bytes + planned.vision_bytes
        == bytes_of(model) - computed
    )
    assert computed < 1000  # rotary frequencies and the embedding's scale


@pytest.mark.parametrize("quantization", ["fp8", "int4"])
def test_encoder_and_decoder_share_every_packed_module(quantization: Any) -> None:
    model = load(device="cpu", quantization=quantization).model.model
    for ours, theirs in zip(model.decoder.layers, model.encoder.language_model.layers, strict=True):
        assert ours.experts is theirs.experts
        for name in (
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
            "self_attn.q_proj",
            "self_attn.k_proj",
        ):
            assert ours.get_submodule(name) is theirs.get_submodule(name)
            assert isinstance(ours.get_submodule(name), QuantizedLinear)
    assert isinstance(model.decoder.self_conditioning.up_proj, QuantizedLinear)
    plain = dict(model.named_parameters())
    assert not any("experts" in name for name in plain)
    assert any("router" in name for name in plain)


@pytest.mark.parametrize("quantization", ["fp8", "int4"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_job_has_the_same_transcript_with_experts_in_host_memory(
    prompt: tuple[int, ...], quantization: Any, share: float
) -> None:
    """share: of the experts that the device has room for; at least one."""
    resident = load(device="cpu", quantization=quantization)
    blueprint = read(bundled_checkpoint_path())
    everywhere = memory.weights(blueprint.tensors, "float32", quantization).experts_bytes
    one = everywhere // (len(blueprint.of.layers) * blueprint.of.experts)
    budget = max(one, int(share * everywhere))
    away = load(device="cpu", quantization=quantization, expert_budget_bytes=budget)
    assert away.quantization == resident.quantization
    request = make_request(prompt, max_tokens=64, max_steps=4)
    assert run_alone(away, request) == run_alone(resident, request)


@pytest.mark.parametrize("quantization", ["fp8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_job_has_the_same_transcript_alone_and_among_others(
    prompt: tuple[int, ...], dtype: Any, quantization: Any
) -> None:
    """The others have other lengths and seeds, and share a cache that holds a part of the
    experts."""
    loaded = load(device="cpu", dtype=dtype, quantization=quantization, expert_budget_bytes=150_000)
    jobs = [
        make_request(
            prompt[: len(prompt) - 3 * n], f"job {n}", seed=n, max_tokens=64, max_steps=4 + n
        )
        for n in range(3)
    ]
    engine = Engine(loaded, max_sequences=3)
    for job in jobs:
        engine.submit(job)
    together = run(engine)
    for job in jobs:
        assert run_alone(loaded, job) == together[job.request_id]


@pytest.mark.parametrize(
    ("quantization", "name"), [("none", "none"), ("fp8", "fp8"), ("int4", "int4-g64+fp8")]
)
def test_the_loaded_model_says_how_it_is_packed(
    quantization: Any, name: str, prompt: tuple[int, ...]
) -> None:
    loaded = load(device="cpu", quantization=quantization)
    weights = load_file(bundled_checkpoint_path() / "model.safetensors")
    count = sum(weight.numel() for weight in weights.values())
    assert (loaded.quantization, loaded.dtype, loaded.parameters) == (name, "float32", count)
    assert canvases(run_alone(loaded, make_request(prompt)))[-1].charged_ids


def test_experts_in_host_memory_have_to_be_packed() -> None:
    with pytest.raises(DeviceError, match="ask for fp8 or int4"):
        load(device="cpu", expert_budget_bytes=10**9)


def test_a_budget_below_one_expert_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="1 bytes holds no expert"):
        load(device="cpu", quantization="fp8", expert_budget_bytes=1)


def test_weights_that_do_not_fit_into_memory_are_a_device_error(small: Path) -> None:
    class NoMemory(TorchFunctionMode):
        """A machine whose memory is taken: what is copied out of the file finds no place."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is Tensor.to and (kwargs or {}).get("copy"):
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            return func(*args, **(kwargs or {}))

    with NoMemory(), pytest.raises(DeviceError, match="the weights do not fit cpu"):
        load(small, device="cpu")


TEXT = json.loads((bundled_checkpoint_path() / "config.json").read_text())["text_config"]
WIDTH, INNER, EXPERT = (
    TEXT[name] for name in ("hidden_size", "intermediate_size", "moe_intermediate_size")
)
UP = "model.decoder.layers.0.mlp.up_proj.weight"
EXPERTS = "model.decoder.layers.1.experts.down_proj"


@pytest.mark.parametrize("quantization", ["none", "int4"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UP), f"missing keys in the weights: {UP}"),
        (
            lambda t: t.update(extra=torch.zeros(3)),
            "unexpected keys in the weights: extra in model.safetensors",
        ),
        (
            lambda t: t.update({UP: torch.zeros(3)}),
            f"{UP} in model.safetensors is [3], not [{INNER}, {WIDTH}]",
        ),
        (
            lambda t: t.update({EXPERTS: t[EXPERTS][:3].clone()}),
            f"is [3, {WIDTH}, {EXPERT}], not [4, {WIDTH}, {EXPERT}]",
        ),
    ],
    ids=["missing", "unexpected", "another shape", "an expert less"],
)
def test_weights_that_are_not_the_configurations_are_refused(
    copy: Path, quantization: Any, change: Change, message: str
) -> None:
    rewrite(copy, change)
    with pytest.raises(CheckpointError) as caught:
        load(copy, device="cpu", quantization=quantization)
    assert message in str(caught.value)


def test_weights_of_another_type_are_refused_by_file(copy: Path) -> None:
    path = rewrite(copy, lambda t: t.update({UP: t[UP].to(torch.int32)}))
    with pytest.raises(CheckpointError, match=f"{UP} is I32, not one of") as caught:
        load(copy, device="cpu")
    assert caught.value.path == str(path)


@pytest.mark.parametrize("name", [UP, EXPERTS])
def test_a_weight_that_is_no_number_cannot_be_packed(copy: Path, name: str) -> None:
    path = rewrite(copy, lambda t: t[name].view(-1)[7:8].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=f"{name}: a weight is NaN or infinite") as caught:
        load(copy, device="cpu", quantization="fp8")
    assert caught.value.path == str(path)


def test_a_tied_weight_may_be_stored_under_both_names_if_it_is_one(
    copy: Path, bundled: LoadedModel
) -> None:
    twin = UP.replace("model.decoder", "model.encoder.language_model")
    rewrite(
        copy,
        lambda t: t.update(
            {twin: t[UP].clone(), "lm_head.weight": t["model.decoder.embed_tokens.weight"].clone()}
        ),
    )
    again = everything(load(copy, device="cpu").model)
    assert all(
        torch.equal(again[name], tensor) for name, tensor in everything(bundled.model).items()
    )
    path = rewrite(copy, lambda t: t[twin].view(-1)[:1].add_(1))
    with pytest.raises(CheckpointError, match="differs from") as caught:
        load(copy, device="cpu")
    assert caught.value.path == str(path)


def test_a_shard_cut_short_is_named(small: Path, tmp_path: Path) -> None:
    folder = write_small(tmp_path / "cut")
    (folder / manifest.MANIFEST_FILE).unlink()
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="its header describes") as caught:
        load(folder, device="cpu")
    assert caught.value.path == str(path)


BAD_CONFIGS: dict[str, dict[str, Any]] = {
    "no text": {"text_config": None},
    "a text for a number": {"text_config.hidden_size": "many"},
    "more layers than anything has": {"text_config.num_hidden_layers": 10**9},
    "no experts": {"text_config.num_experts": None},
    "more chosen than there are": {"text_config.top_k_experts": 99},
    "a window of nothing": {"text_config.sliding_window": 0},
    "layer types for other layers": {"text_config.layer_types": ["full_attention"]},
    "a canvas of nothing": {"canvas_length": 0},
    "a canvas larger than the protocol's": {"canvas_length": 1025},
}


@pytest.mark.parametrize("defect", BAD_CONFIGS)
def test_a_configuration_out_of_bounds_is_refused_before_it_is_built(
    copy: Path, defect: str
) -> None:
    path = copy / "config.json"
    config = json.loads(path.read_text())
    for key, value in BAD_CONFIGS[defect].items():
        place, _, name = key.rpartition(".")
        (config[place] if place else config)[name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        load(copy, device="cpu")
    assert caught.value.path == str(path)


def test_a_compressed_tensors_checkpoint_is_refused_with_the_reason(copy: Path) -> None:
    """Its tensors as llm-compressor writes them: float8 with a scale a channel. transformers would
    take the weights and drop the scales of the experts without an error.
    """

    def compress(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if precision.is_linear(name)]:
            tensors[name], scale = Fp8().pack(tensors[name])
            tensors[f"{name}_scale"] = scale[:, None].to(torch.bfloat16)

    rewrite(copy, compress)
    config = json.loads((copy / "config.json").read_text())
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"compressed-tensors\): no library reads the experts"
    ) as caught:
        load(copy, device="cpu")
    assert caught.value.path == str(copy / "config.json")


@pytest.mark.parametrize(("dtype", "quantization"), PRECISIONS)
def test_shards_that_are_read_at_once_give_the_same_model(
    small: Path, dtype: Any, quantization: Any
) -> None:
    assert len(list(small.glob("*.safetensors"))) > 2
    one, several = (
        load(small, device="cpu", dtype=dtype, quantization=quantization, threads=threads)
        for threads in (1, 4)
    )
    assert one.digest == several.digest
    expected, found = everything(one.model), everything(several.model)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_flipped_byte_in_a_shard_that_is_read_beside_others_is_named(
    small: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small, folder)
    shard = sorted(folder.glob("*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{shard.name}: does not match"):
        load(folder, device="cpu", threads=4)
