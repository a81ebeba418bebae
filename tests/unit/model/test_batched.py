"""The fast executor's own promises: cached prefixes, sequences that run alone, split passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model import limits
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.engine.batched import BatchedExecutor, _Task
from piecework_model.engine.engine import Engine
from piecework_model.engine.executor import SequenceStep
from piecework_model.engine.prefix_cache import PrefixCache, prefix_keys
from piecework_model.engine.scheduler import PrefillChunk, SequenceWork
from piecework_model.errors import MemoryOverflowError
from piecework_model.layers.backbone import Backbone
from piecework_model.layers.cache import SequenceCache
from piecework_model.layers.graphs import GraphPieceRunner
from piecework_model.layers.projections import (
    Products,
    can_pack,
    is_emulated,
    multiplies_bfloat16,
    products_of,
)
from piecework_model.layout import CacheLayout, LayerLayout, cache_layout
from piecework_model.requests import CanvasEvent, FailedEvent, ProgressEvent
from tests.support.model.allocations import allocations
from tests.support.model.model_runs import (
    broken_sequence,
    canvases,
    make_request,
    run,
    run_alone,
    run_together,
    torch_threads,
)
from tests.support.model.recorder import EchoRecorder

Prompt = tuple[int, ...]


def long_prompt(tokens: int, first: int = 6) -> Prompt:
    return tuple(first + number % 600 for number in range(tokens))


def executor(loaded: LoadedModel, isolated: bool | None = None) -> BatchedExecutor:
    return BatchedExecutor(loaded.model, loaded.limits, isolated=isolated)


@contextmanager
def hungry(loaded: LoadedModel, above_tokens: int = 0) -> Iterator[None]:
    """The last layer runs out of memory for more than so many tokens."""

    def fail(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[0] > above_tokens:
            raise torch.OutOfMemoryError("no memory for so many")

    handle = loaded.model.lm_head.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def test_the_same_prompt_of_one_tenant_is_prefilled_once_and_gives_the_same_text(
    bundled: LoadedModel,
) -> None:
    prompt = long_prompt(200)  # three whole chunks of 64 tokens and eight more
    shared = executor(bundled)
    engine = Engine(bundled, max_sequences=1, executor=shared)
    texts: list[list[tuple[bytes, ...]]] = []
    for seed in (1, 1, 2):
        engine.submit(
            make_request(prompt, f"job-{len(texts)}", seed=seed, max_tokens=32, tenant="one")
        )
        texts.append([event.step_leaves for event in canvases(run(engine)[f"job-{len(texts)}"])])
    assert shared.prefix_hits == 8
    assert texts[0] == texts[1] != texts[2]
    alone = run_alone(bundled, make_request(prompt, seed=2, max_tokens=32))
    assert texts[2] == [event.step_leaves for event in canvases(alone)]


def test_a_prompt_that_goes_on_differently_shares_only_its_beginning(bundled: LoadedModel) -> None:
    shared = executor(bundled)
    engine = Engine(bundled, max_sequences=1, executor=shared)
    first, second = long_prompt(200), (*long_prompt(130), 9, 9, 9)
    for name, prompt in (("first", first), ("second", second)):
        engine.submit(make_request(prompt, name, max_tokens=32, tenant="one"))
        events = run(engine)[name]
    assert shared.prefix_hits == 2
    assert (
        canvases(events)[0].step_leaves
        == canvases(run_alone(bundled, make_request(second, max_tokens=32)))[0].step_leaves
    )


@pytest.mark.parametrize("tenant", ["two", ""])
def test_another_tenant_or_none_shares_nothing(bundled: LoadedModel, tenant: str) -> None:
    shared = executor(bundled)
    engine = Engine(bundled, max_sequences=1, executor=shared)
    for name, whose in (("first", "one"), ("second", tenant)):
        engine.submit(
            make_request(long_prompt(100), name, max_tokens=32, max_steps=1, tenant=whose)
        )
        run(engine)
    assert shared.prefix_hits == 0


def test_kept_chunks_stay_within_their_bytes_and_beginnings_outlive_what_follows(
    bundled: LoadedModel,
) -> None:
    layout = cache_layout(bundled.model.config.text_config, 32, 64)
    cache = SequenceCache(layout, 256, torch.device("cpu"), torch.float32)
    cache.reserve(64)
    chunk = cache.copy(0, 64)
    assert chunk.bytes == layout.chunk_bytes(64, 4)
    store = PrefixCache(3 * chunk.bytes)
    keys = prefix_keys("one", [PrefillChunk((id_,)) for id_ in (1, 2, 3, 4)])
    for depth in range(1, 5):
        store.keep(keys[:depth], chunk)
    assert store.used_bytes == 3 * chunk.bytes
    assert len(store.find(keys)) == 3
    store.keep(
        prefix_keys("one", [PrefillChunk((9,)), PrefillChunk((8,))]), chunk
    )  # what stands before it is not known
    assert store.find(prefix_keys("one", [PrefillChunk((9,))])) == []
    assert store.used_bytes == 3 * chunk.bytes
    store.resize(2 * chunk.bytes)
    assert len(store.find(keys)) == 2
    store.resize(chunk.bytes - 1)
    store.keep(keys[:1], chunk)
    assert store.find(keys) == []
    assert store.used_bytes == 0


def test_prompts_are_kept_only_in_memory_that_no_sequence_needs(bundled: LoadedModel) -> None:
    shared = executor(bundled)
    request = make_request(long_prompt(130), "first", max_tokens=32, max_steps=1, tenant="one")
    sequence = shared.footprint(request)
    chunk = cache_layout(bundled.model.config.text_config, 32, 64).chunk_bytes(64, 4)
    engine = Engine(bundled, max_sequences=2, memory_bytes=sequence + chunk, executor=shared)
    engine.submit(request)
    run(engine)
    engine.submit(replace(request, request_id="second"))
    run(engine)
    assert shared.prefix_hits == 1  # of two whole chunks, room was for one
    engine.submit(replace(request, request_id="third", tenant=""))
    engine.submit(replace(request, request_id="fourth", max_tokens=1))
    run(engine)
    assert engine.sequences == engine.queued == 0


def test_sequences_that_must_run_alone_have_the_results_of_their_own(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    """Where products depend on their number of rows, every pass has one segment: the job alone
    decides its shape."""
    alone, beside = (
        Engine(bundled, max_sequences=3, executor=executor(bundled, isolated=True))
        for _ in range(2)
    )
    wanted = make_request(long_prompt(150), "wanted", max_tokens=64)
    alone.submit(wanted)
    beside.submit(make_request(prompt, "other", seed=4))
    beside.submit(wanted)
    beside.submit(make_request(prompt[:3], "third", seed=5))
    assert run(beside)["wanted"] == run(alone)["wanted"]


class FailingCopy(TorchFunctionMode):
    """Lets the copy number `at` (from 1) of whatever tensor run out of memory, once."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.clone:
            self.left -= 1
            if self.left == 0:
                raise torch.OutOfMemoryError("no memory for this copy")
        return func(*args, **(kwargs or {}))


def test_memory_that_runs_out_at_any_copy_of_a_pass_moves_no_text(bundled: LoadedModel) -> None:
    """Wherever a pass of two sequences fails, it is repeated from the same state."""
    prompts = {"first": long_prompt(128), "second": long_prompt(170, first=9)}
    wanted = [
        make_request(prompt, name, max_tokens=96, max_steps=2, tenant="one")
        for name, prompt in prompts.items()
    ]
    alone = {request.request_id: run_alone(bundled, request) for request in wanted}
    at, failed = 0, True
    lost: list[str] = []
    while failed:
        at += 1
        engine = Engine(bundled, max_sequences=2)
        for request in wanted:
            engine.submit(request)
        mode = FailingCopy(at)
        with mode:
            events = run(engine)
        failed = mode.left <= 0
        for name, seen in events.items():
            if isinstance(
                seen[-1], FailedEvent
            ):  # it was alone in its pass: there is nothing smaller to try
                lost.append(name)
                assert seen[-1].kind == "out_of_memory"
                assert seen[:-1] == alone[name][: len(seen) - 1], f"after a failure at copy {at}"
            else:
                assert seen == alone[name], f"after a failure at copy {at}"
    assert at > 50
    assert len(lost) < at / 2


def test_a_chunk_that_is_not_finite_is_not_kept_for_the_tenants_next_job(
    bundled: LoadedModel,
) -> None:
    """One transient fault costs one job."""
    prompt, calls = long_prompt(200), 0

    def once(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return output * float("nan") if calls == 1 else output

    shared = executor(bundled)
    engine = Engine(bundled, max_sequences=1, executor=shared)
    handle = bundled.model.model.decoder.layers[0].mlp.down_proj.register_forward_hook(once)
    try:
        engine.submit(make_request(prompt, "struck", max_tokens=32, tenant="one"))
        *_, struck = run(engine)["struck"]
    finally:
        handle.remove()
    assert isinstance(struck, FailedEvent)
    assert struck.kind == "non_finite"
    engine.submit(make_request(prompt, "next", max_tokens=32, tenant="one"))
    assert run(engine)["next"] == run_alone(bundled, make_request(prompt, "next", max_tokens=32))


def test_passes_shrink_once_when_memory_runs_out_and_grow_again(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    made = executor(bundled)
    full = made._pass_tokens
    names = [f"sequence-{number}" for number in range(4)]
    for seed, name in enumerate(names):
        made.open(make_request(prompt, name, seed=seed, max_steps=48, confidence_threshold=0.0))

    tokens = sum(
        made._tokens(_Task(name, made._sequences[name], 1, denoise=True)) for name in names
    )
    with hungry(bundled):
        made.step([SequenceWork(name, 1, denoise=True) for name in names])
    assert made._pass_tokens == tokens // 2
    for _ in range(4 * limits.CALM_STEPS):
        made.step([])
    assert made._pass_tokens == full


def test_two_threads_change_no_bit_of_a_sequence_among_others(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    """With two threads MKL sums small products in another order; rows are then filled up."""
    with torch_threads(2):
        wanted = [
            make_request(prompt[: 3 + 7 * n], f"sequence-{n}", seed=n, max_steps=4)
            for n in range(3)
        ]
        together = run_together(bundled, wanted)
        assert together == {request.request_id: run_alone(bundled, request) for request in wanted}


def test_memory_that_a_large_pass_lacks_is_found_in_smaller_ones(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    """The first pass of four sequences runs out of memory, its halves do not. No sequence fails."""
    wanted = [
        make_request(prompt, f"sequence-{seed}", seed=seed, max_tokens=32) for seed in range(4)
    ]
    engine = Engine(bundled, max_sequences=4)
    for request in wanted:
        engine.submit(request)
    with hungry(bundled, above_tokens=2 * bundled.limits.canvas_size):
        events = run(engine)
    assert events == {request.request_id: run_alone(bundled, request) for request in wanted}


def test_what_only_saves_work_makes_room_when_memory_runs_out(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    """Kept prompts and recordings go first, and prompts are kept again from the next step on."""
    made = executor(bundled)
    pieces = GraphPieceRunner(EchoRecorder(), max_bytes=10**8)
    made._backbone = Backbone(bundled.model, products_of(bundled.model, pack=False), pieces=pieces)
    made.set_free_memory(limits.PREFIX_CACHE_BYTES)
    made.open(
        make_request(prompt, "sequence", tenant="one", max_steps=48, confidence_threshold=0.0)
    )
    made.step([SequenceWork("sequence", 1, denoise=True)])
    made.record(1)
    made.step([SequenceWork("sequence", 0, denoise=True)])
    assert made._prefix_cache.used_bytes
    assert pieces.recordings and pieces.replays

    with hungry(bundled):
        (failed,) = made.step([SequenceWork("sequence", 0, denoise=True)])
    assert isinstance(failed, FailedEvent)
    assert not made._prefix_cache.used_bytes
    assert not pieces.held_bytes

    made.set_free_memory(limits.PREFIX_CACHE_BYTES)
    made.open(make_request(prompt, "next", tenant="one"))
    made.step([SequenceWork("next", 1, denoise=True)])
    assert made._prefix_cache.used_bytes


def test_a_cache_that_cannot_be_allocated_ends_its_sequence_only(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    made = BatchedExecutor(bundled.model, replace(bundled.limits, max_context=2**50))
    for request in (make_request(prompt, "huge", max_tokens=2**44), make_request(prompt, "small")):
        made.open(request)
    huge, small = made.step(
        [SequenceWork("huge", 1, denoise=True), SequenceWork("small", 1, denoise=True)]
    )
    assert isinstance(huge, FailedEvent)
    assert huge.kind == "out_of_memory"
    assert isinstance(small, SequenceStep)


def test_a_sequence_that_breaks_late_leaves_the_others_caches_as_they_were(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    def poison(logits: torch.Tensor) -> None:
        logits[0, 0] = float("nan")

    wanted = make_request(prompt, max_tokens=96, max_steps=4)
    engine = Engine(bundled, max_sequences=2)
    engine.submit(wanted)
    engine.submit(
        make_request(prompt, "poisoned", seed=3, max_tokens=96, max_steps=4, draft_every=0)
    )
    with broken_sequence(bundled, 1, from_call=6, breaking=poison):  # in its second canvas
        events = run(engine)
    told = [type(event) for event in events["poisoned"] if not isinstance(event, ProgressEvent)]
    assert told == [CanvasEvent, FailedEvent]
    assert events["job"] == run_alone(bundled, wanted)


def test_a_request_beyond_the_engines_memory_is_refused(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    engine = Engine(bundled, max_sequences=1, memory_bytes=1000)
    with pytest.raises(MemoryOverflowError):
        engine.submit(make_request(prompt))


def test_the_footprint_is_what_a_sequences_cache_really_takes(bundled: LoadedModel) -> None:
    made = executor(bundled)
    for prompt_tokens, max_tokens in ((1, 1), (100, 96), (700, 200)):
        request = make_request(long_prompt(prompt_tokens), max_tokens=max_tokens)
        made.open(request)
        made.step([SequenceWork(request.request_id, 1, denoise=False)])
        cache = made._sequences[request.request_id].cache
        taken = sum(part.numel() * part.element_size() for part in (*cache.keys, *cache.values))
        assert taken == made.footprint(request)
        made.close(request.request_id)


@pytest.mark.parametrize("memory", [0, 1_000, 100_000, 1_000_000, 2**40])
def test_the_longest_sequence_fits_and_one_more_token_does_not(
    bundled: LoadedModel, memory: int
) -> None:
    layout = cache_layout(bundled.model.config.text_config, 32, 64)
    largest = executor(bundled).max_context(memory)
    assert largest <= bundled.limits.max_context
    assert largest == 0 or layout.sequence_bytes(largest, 4) <= memory
    assert largest == bundled.limits.max_context or layout.sequence_bytes(largest + 1, 4) > memory


def test_a_windowed_layer_takes_no_more_than_its_window_a_chunk_and_a_canvas() -> None:
    layout = CacheLayout((LayerLayout(2, 8, 64), LayerLayout(1, 16, 0)), canvas=32, chunk=64)
    assert layout.sequence_bytes(10_000, 2) == 2 * 2 * ((63 + 64 + 32) * 2 * 8 + 10_000 * 16)
    assert layout.sequence_bytes(100, 2) == 2 * 2 * (100 * 2 * 8 + 100 * 16)


def test_packed_products_have_the_bits_of_plain_ones() -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn((96, 160), generator=generator).bfloat16()
    for rows in (1, 7, 64):
        states = torch.randn((rows, 160), generator=generator).bfloat16()
        plain, packed = (Products(weight, pack, invariant=False) for pack in (False, True))
        assert torch.equal(packed.of_weight(weight)(states), plain.of_weight(weight)(states))
        assert torch.equal(packed.of_matrix(weight.t())(states), plain.of_weight(weight)(states))


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False, "cpu_name": "Intel"}, False),
        ({"architecture": "aarch64", "bf16": True}, True),
        ({}, False),
    ],
)
def test_a_cpu_multiplies_bfloat16_by_what_it_lists(
    capabilities: dict[str, Any], has: bool
) -> None:
    assert multiplies_bfloat16(capabilities) is has


def test_emulated_bfloat16_is_multiplied_in_float32_and_rounded_once() -> None:
    """On a CPU without instructions for it. There, weights are not converted either."""
    halved = load(device="cpu", dtype="bfloat16")
    weight: torch.Tensor = halved.model.lm_head.weight
    emulated = not multiplies_bfloat16(torch.cpu.get_capabilities())
    assert is_emulated(weight) is emulated
    assert not is_emulated(weight.float())
    assert can_pack(weight) is not emulated
    rows = torch.randn((40, weight.shape[1]), generator=torch.Generator().manual_seed(3)).bfloat16()
    in_float32 = torch.nn.functional.linear(rows.float(), weight.float()).bfloat16()
    emulation = torch.nn.functional.linear(rows, weight)
    for pack in (True, False):
        products = Products(weight, pack)
        made = products.of_weight(weight)(rows)
        assert torch.equal(made, in_float32 if emulated else emulation)
        assert not products.isolated
        soft = products.of_matrix(weight.t())(rows)
        assert torch.allclose(soft.float(), in_float32.float(), rtol=0.01, atol=0.01)


def test_a_large_weight_is_converted_part_by_part() -> None:
    """There is never a whole one in float32."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn((70_000, 300), generator=generator).bfloat16()
    rows = torch.randn((20, 300), generator=generator).bfloat16()
    products = Products(weight, pack=False, invariant=False)
    one = allocations(lambda: products.of_weight(weight)(rows))
    assert one.peak_bytes < weight.numel() * 4
    columns = allocations(lambda: products.of_matrix(weight.t())(rows))
    assert columns.peak_bytes < weight.numel() * 4
    assert one.result.shape == columns.result.shape == (20, 70_000)


def test_sequences_of_the_bundled_model_run_together(bundled: LoadedModel) -> None:
    assert not executor(bundled).isolated


def test_a_machine_whose_products_depend_on_places_is_recognized(bundled: LoadedModel) -> None:
    """A projection whose rows carry their place: nothing may be batched then."""

    class Counting(torch.nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return super().forward(rows) + torch.arange(rows.shape[0])[:, None]

    model: DiffusionGemmaForBlockDiffusion = bundled.model
    original = model.model.decoder.layers[0].mlp.gate_proj
    model.model.decoder.layers[0].mlp.gate_proj = Counting(
        original.in_features, original.out_features, bias=False
    )
    try:
        assert executor(bundled).isolated
    finally:
        model.model.decoder.layers[0].mlp.gate_proj = original


def test_draft_settings_and_tenant_change_no_leaf(bundled: LoadedModel, prompt: Prompt) -> None:
    wanted = make_request(prompt, max_tokens=32)
    for changed in (replace(wanted, draft_every=0), replace(wanted, tenant="somebody")):
        assert canvases(run_alone(bundled, changed)) == canvases(run_alone(bundled, wanted))
