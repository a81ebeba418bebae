"""What a model needs, against what it takes; and which precision a device gets."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from piecework_model import bounds, limits, precision
from piecework_model.checkpoint import memory
from piecework_model.checkpoint.dimensions import (
    Blueprint,
    dimensions,
    published_tensors,
    read,
    released_blueprint,
)
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.checkpoint.memory import GIB, Device, Need
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.engine import Engine
from piecework_model.errors import CheckpointError, DeviceError
from piecework_model.layers.backbone import Backbone, Segment
from piecework_model.layers.cache import SequenceCache
from piecework_model.layers.projections import products_of
from piecework_model.layout import cache_layout
from piecework_model.requests import HOLE, ReadSlot
from tests.support.model.allocations import allocations
from tests.support.model.model_runs import make_request, run
from tests.support.model.small_models import small_config

RELEASED = released_blueprint()


def card(gib: float, host_gib: float = 64) -> Device:
    return Device("cuda", f"a card of {gib} GiB", int(gib * GIB), int(host_gib * GIB))


def needed(form: memory.Format, sequences: int = 1, context: int = 8192) -> Need:
    return memory.need(RELEASED, form, "cuda", sequences, context)


BF16: memory.Format = ("bfloat16", "bfloat16", "none")
FP8: memory.Format = ("fp8", "bfloat16", "fp8")
INT4: memory.Format = ("int4", "bfloat16", "int4")


# --- the model


def test_the_released_model_has_the_published_figures() -> None:
    text, vision = (
        sum(
            math.prod(shape) for name, shape in RELEASED.tensors if precision.is_vision(name) is is_
        )
        for is_ in (False, True)
    )
    assert text == pytest.approx(25.2e9, rel=0.005)
    assert vision == pytest.approx(0.57e9, rel=0.01)
    assert needed(BF16).weights_bytes == 2 * (text + vision)
    experts = sum(
        math.prod(shape) for name, shape in RELEASED.tensors if precision.is_experts(name)
    )
    assert experts == pytest.approx(0.905 * 25.2e9, rel=0.01)
    of = RELEASED.of
    assert [layer.window for layer in of.layers].count(0) == 5
    assert of.layers[29].window == 0
    assert not any(".layers.29." in name and "v_proj" in name for name, _ in RELEASED.tensors)


def test_a_token_of_context_costs_what_the_full_layers_keep_of_it() -> None:
    """5 layers of 2 heads of 512, keys and values, 2 bytes each; the others keep only their
    window."""
    far = memory.sequence_bytes(RELEASED.of, 100_000, "bfloat16")
    assert memory.sequence_bytes(RELEASED.of, 100_001, "bfloat16") - far == 5 * 2 * 2 * 512 * 2
    windowed = 25 * 2 * 8 * 256 * 2 * (1023 + 512 + 256)
    assert far == windowed + 100_000 * 20_480


CONFIGS: dict[str, dict[str, Any]] = {
    "as written by this version": {},
    "global figures instead of layers": {
        "per_layer_config": None,
        "global_head_dim": 96,
        "num_global_key_value_heads": 1,
    },
    "five to one unless told": {
        "layer_types": None,
        "per_layer_config": None,
        "num_hidden_layers": 13,
    },
    "both directions": {"use_bidirectional_attention": "all"},
    "wider": {
        "hidden_size": 320,
        "intermediate_size": 416,
        "moe_intermediate_size": 64,
        "num_experts": 5,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_and_layers_are_those_that_transformers_builds(name: str) -> None:
    base = small_config().to_dict()
    text = {**base["text_config"], **CONFIGS[name]}
    text = {key: value for key, value in text.items() if value is not None}
    written = {**base, "text_config": text}
    config = DiffusionGemmaConfig(**json.loads(json.dumps(written)))
    with torch.device("meta"):
        model = DiffusionGemmaForBlockDiffusion(config)
    of = dimensions(json.loads(json.dumps(written)), Path("config.json"))
    built = model.state_dict()
    ours = dict(published_tensors(of))
    assert {key: tuple(built[key].shape) for key in ours} == ours
    distinct = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    text_only = [name for name in distinct.values() if not precision.is_vision(name)]
    assert len(ours) == len(text_only)
    assert of.layers == cache_layout(config.text_config, of.canvas, of.chunk).layers


def test_the_headers_of_a_checkpoint_and_its_configuration_agree(tmp_path: Path) -> None:
    source = bundled_checkpoint_path()
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    bare, full = read(tmp_path), read(source)
    assert bare.of == full.of
    assert sorted(bare.tensors) == sorted(t for t in full.tensors if not precision.is_vision(t[0]))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=5,
    ),
    st.sampled_from(
        [
            "global_head_dim",
            "head_dim",
            "hidden_size",
            "layer_types",
            "num_experts",
            "num_global_key_value_heads",
            "num_hidden_layers",
            "per_layer_config",
            "sliding_window",
            "vocab_size",
        ]
    ),
)
def test_any_value_in_a_configuration_is_read_or_refused_by_file(value: Any, key: str) -> None:
    config = json.loads((bundled_checkpoint_path() / "config.json").read_text())
    config["text_config"][key] = value
    if key.startswith(("global", "num_global")):
        del config["text_config"]["per_layer_config"]
    try:
        of = dimensions(config, Path("some/config.json"))
    except CheckpointError as error:
        assert error.path == "some/config.json"
    else:
        assert sum(math.prod(shape) for _, shape in published_tensors(of)) > 0


# --- against the bytes that are taken


def test_a_rows_cache_is_counted_exactly(bundled: LoadedModel) -> None:
    config, size = bundled.model.config, bundled.limits
    layout = cache_layout(config.text_config, size.canvas_size, size.chunk_tokens)
    for tokens in (40, 300, 1000):
        cpu = torch.device("cpu")
        taken = allocations(partial(SequenceCache, layout, tokens, cpu, torch.float32))
        assert taken.kept_bytes == memory.sequence_bytes(
            read(bundled_checkpoint_path()).of, tokens, "float32"
        )


@pytest.mark.parametrize("quantization", ["none", "fp8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_running_engine_stays_within_its_plan(
    prompt: tuple[int, ...], dtype: Any, quantization: Any
) -> None:
    sequences, canvases = 2, 2
    loaded = load(device="cpu", dtype=dtype, quantization=quantization)
    context = len(prompt) + canvases * loaded.limits.canvas_size
    name = quantization if quantization != "none" else dtype
    form: memory.Format = (name, dtype, quantization)
    plan = memory.need(read(bundled_checkpoint_path()), form, "cpu", sequences, context)

    def work() -> None:
        engine = Engine(loaded, max_sequences=sequences, memory_bytes=plan.kv_bytes)
        for number in range(sequences):
            request = make_request(
                prompt, f"sequence {number}", seed=number, max_tokens=64, max_steps=3
            )
            engine.submit(request)
        assert engine.sequences == sequences, (
            "the planned budget does not hold the planned sequences"
        )
        run(engine)

    taken = allocations(work)
    assert taken.peak_bytes <= plan.kv_bytes + plan.work_bytes
    assert taken.peak_bytes > 0.15 * (plan.kv_bytes + plan.work_bytes), "the bound says nothing"


def test_short_reads_beside_a_text_stay_within_the_plan_of_the_text() -> None:
    loaded = load(device="cpu")
    of, canvas = read(bundled_checkpoint_path()).of, loaded.limits.canvas_size
    text = make_request((9,), "text", max_tokens=canvas, max_steps=3)
    reads = [
        make_request(
            (9,),
            f"read {number}",
            seed=number,
            template=(HOLE, *[9] * (canvas - 1)),
            reads=((ReadSlot(0, (8, 9)),),),
            max_tokens=canvas,
            max_steps=1,
        )
        for number in range(limits.SHORT_SEQUENCES)
    ]
    executor = BatchedExecutor(loaded.model, loaded.limits)
    caches = sum(executor.footprint(request) for request in (text, *reads))

    def work() -> None:
        engine = Engine(loaded, max_sequences=1, executor=executor)
        for request in (text, *reads):
            engine.submit(request)
        assert engine.sequences == 1 + len(reads)
        run(engine)

    planned = memory.work_bytes(of, "cpu", 1, 1 + canvas, "float32")
    assert allocations(work).peak_bytes <= caches + planned


def test_a_pass_leaves_no_more_masks_behind_than_allowed(bundled: LoadedModel) -> None:
    allowed, chunk = 30_000, 64
    stack = Backbone(bundled.model, products_of(bundled.model, pack=False), mask_bytes=allowed)
    layout = cache_layout(bundled.model.config.text_config, 32, chunk)
    cache = SequenceCache(layout, 1024, torch.device("cpu"), torch.float32)
    most = 0
    with torch.inference_mode():
        for start in range(0, 1024 - chunk, chunk):
            cache.reserve(chunk)
            ids = torch.arange(start, start + chunk) % 600
            stack.run(stack.embed(ids), [Segment(cache, 0, chunk, 0, causal=True)], 0)
            cache.commit(chunk)
            kept = sum(mask.nbytes for mask in stack._masks.values())
            assert kept <= allowed
            most = max(most, kept)
    assert most > allowed / 2, "nothing is kept, so nothing is bounded"


def _kept_angles(stack: Backbone) -> int:
    known = stack._known_angles.values()
    return sum(part.nbytes for made in known for parts in made.values() for part in parts)


def test_no_more_rotations_are_remembered_than_the_plan_counts(bundled: LoadedModel) -> None:
    """Chunks at a thousand places, as many long prompts have them."""
    of, chunk = read(bundled_checkpoint_path()).of, 16
    stack = Backbone(bundled.model, products_of(bundled.model, pack=False))
    hidden = torch.zeros((chunk, of.hidden))
    planned = bounds.kept_angle_bytes(of.max_context, 2 * 4 * (32 + 64))
    most = 0
    for position in range(of.max_context - chunk):
        segment = Segment(
            SequenceCache(of.cache, 1, torch.device("cpu"), torch.float32),
            0,
            chunk,
            position,
            causal=True,
        )
        stack._rotary([segment], hidden)
        most = max(most, _kept_angles(stack))
    assert planned / 2 < most <= planned
    assert planned < memory.work_bytes(of, "cpu", 1, 256, "float32")
    stack.release(recordings=False)
    assert not _kept_angles(stack), "where memory ran out, they go"


def test_the_plan_counts_the_rotations_of_the_released_model() -> None:
    """Of 256 K tokens they would take 768 MiB, and the reserve of a card has 1 GiB."""
    far, near = (replace(RELEASED.of, max_context=tokens) for tokens in (262_144, 1024))
    more = [memory.work_bytes(of, "cuda", 1, 1024, "bfloat16") for of in (far, near)]
    assert more[0] - more[1] == limits.KEPT_ANGLE_BYTES - 1024 * 2 * 2 * (256 + 512)


# --- the choice


@pytest.mark.parametrize(
    ("gib", "chosen", "away"),
    [
        (12, "int4", True),
        (16, "int4", True),
        (24, "int4", False),
        (32, "fp8", False),
        (48, "fp8", False),
        (80, "bfloat16", False),
    ],
)
def test_each_card_gets_the_most_faithful_precision_that_fits(
    gib: int, chosen: str, away: bool
) -> None:
    choice = memory.choose(RELEASED, card(gib), sequences=2, context=8192)
    assert (choice.need.precision, choice.need.offloaded) == (chosen, away)
    assert choice.need.device_bytes <= card(gib).usable_bytes
    assert choice.reason.startswith(chosen)
    text, _, advice = choice.reason.partition(". ")
    assert text.startswith(chosen), "one sentence"
    expected = "Each step copies experts" if away else "The vllm backend is faster"
    assert advice.startswith(expected) if chosen == "int4" else not advice


def _longest_sequence(budget: int) -> int:
    return RELEASED.of.cache.longest_sequence(budget, 2, RELEASED.of.max_context)


def test_room_is_left_for_the_masks_of_the_longest_row_that_is_admitted() -> None:
    """A plan for 8 K tokens on a card with room for 256 K."""
    choice = memory.choose(RELEASED, card(80), sequences=1, context=8192)
    longest = _longest_sequence(choice.kv_budget_bytes)
    assert longest == RELEASED.of.max_context
    work = memory.work_bytes(RELEASED.of, "cuda", 1, longest, "bfloat16")
    assert choice.need.weights_bytes + choice.kv_budget_bytes + work <= card(80).usable_bytes


@settings(max_examples=40)
@given(st.floats(4, 200), st.floats(8, 256), st.integers(1, 32), st.integers(256, 262_144))
def test_what_is_chosen_fits_and_nothing_more_faithful_would(
    gib: float, host: float, sequences: int, context: int
) -> None:
    device = card(gib, host)
    every = [needed(form, sequences, context) for form in (BF16, FP8, INT4)]
    fitting = [n.precision for n in every if n.device_bytes <= device.usable_bytes]
    try:
        choice = memory.choose(RELEASED, device, sequences=sequences, context=context)
    except DeviceError as error:
        assert not fitting
        assert "does not fit" in str(error)
        return
    need = choice.need
    assert need.device_bytes <= device.usable_bytes
    assert need.precision == (fitting or ["int4"])[0]
    assert need.offloaded == (not fitting)
    assert need.kv_bytes <= choice.kv_budget_bytes
    assert need.device_bytes - need.kv_bytes + choice.kv_budget_bytes <= device.usable_bytes
    longest, planned = (
        memory.work_bytes(RELEASED.of, "cuda", sequences, tokens, need.dtype)
        for tokens in (_longest_sequence(choice.kv_budget_bytes), context)
    )
    grown = max(
        0, longest - planned
    )  # by the masks of the longest sequence that the engine would admit
    assert (
        choice.kv_budget_bytes == need.kv_bytes
        or need.device_bytes - need.kv_bytes + choice.kv_budget_bytes + grown <= device.usable_bytes
    )
    assert choice.expert_budget_bytes == (need.cache_bytes if need.offloaded else None)
    if need.offloaded:
        assert need.host_bytes <= device.usable_host_bytes


@settings(max_examples=30)
@given(st.sampled_from([BF16, FP8, INT4]), st.integers(1, 16), st.integers(256, 100_000))
def test_more_rows_or_context_never_need_less(
    form: memory.Format, sequences: int, context: int
) -> None:
    here = needed(form, sequences, context).device_bytes
    assert needed(form, sequences + 1, context).device_bytes >= here
    assert needed(form, sequences, context + 1).device_bytes >= here


def test_a_precision_that_is_asked_for_is_given_or_refused() -> None:
    assert (
        memory.choose(RELEASED, card(80), sequences=1, context=8192, asked="int4").need.precision
        == "int4"
    )
    choice = memory.choose(RELEASED, card(16), sequences=1, context=8192, asked="fp8")
    assert (choice.need.precision, choice.need.offloaded) == ("fp8", True)
    with pytest.raises(
        DeviceError,
        match=r"does not fit a card of 24 GiB: bfloat16 needs 51\.\d GiB for 1 sequence of",
    ):
        memory.choose(RELEASED, card(24), sequences=1, context=8192, asked="bfloat16")


def test_plain_weights_are_never_planned_in_host_memory() -> None:
    """The loader keeps only packed experts there."""
    with pytest.raises(DeviceError):
        memory.choose(RELEASED, card(40, 256), sequences=1, context=8192, asked="bfloat16")


def test_a_host_too_small_for_the_experts_is_refused() -> None:
    assert memory.choose(RELEASED, card(12, 32), sequences=1, context=8192).need.offloaded
    with pytest.raises(DeviceError, match="does not fit"):
        memory.choose(RELEASED, card(12, 12), sequences=1, context=8192)


def test_a_cpu_computes_in_float32_and_has_no_other_memory() -> None:
    device = Device("cpu", "a host", 256 * GIB, 256 * GIB)
    choice = memory.choose(RELEASED, device, sequences=1, context=8192)
    assert (choice.need.precision, choice.need.dtype) == ("float32", "float32")
    small = replace(device, memory_bytes=16 * GIB, host_memory_bytes=16 * GIB)
    with pytest.raises(DeviceError):
        memory.choose(RELEASED, small, sequences=1, context=8192)


def test_experts_of_odd_widths_are_not_offered_in_four_bits() -> None:
    odd = Blueprint(replace(RELEASED.of, expert_intermediate=700), ())
    odd = replace(odd, tensors=tuple(published_tensors(odd.of)))
    with pytest.raises(DeviceError, match="fp8 needs"):
        memory.choose(odd, card(20, 16), sequences=1, context=8192)
    with pytest.raises(DeviceError, match="no precision packs it"):
        memory.choose(odd, card(80), sequences=1, context=8192, asked="int4")
