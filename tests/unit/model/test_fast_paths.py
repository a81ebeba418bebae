"""One line that says what is fast and what is not."""

from __future__ import annotations

from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.fast_paths import FastPath, describe
from piecework_model.layers.backbone import Backbone
from piecework_model.layers.graphs import GraphPieceRunner
from piecework_model.layers.projections import products_of
from tests.support.model.recorder import EchoRecorder


def test_paths_are_listed_with_the_reasons_of_those_that_are_off() -> None:
    paths = [FastPath("attention"), FastPath("sampler"), FastPath("experts", "no Triton")]
    assert describe(paths) == "on: attention, sampler; off: experts (no Triton)"
    assert describe(paths[:1]) == "on: attention"
    assert describe(paths[2:]) == "off: experts (no Triton)"


def test_on_a_cpu_there_is_none_to_miss(bundled: LoadedModel) -> None:
    assert describe(BatchedExecutor(bundled.model, bundled.limits).fast_paths) == "none on a CPU"


def test_a_stack_says_what_was_not_recorded(bundled: LoadedModel) -> None:
    parts = bundled.model.config.text_config.num_hidden_layers + 1  # the head is one too
    for recorder, reason in (
        (EchoRecorder(), ""),
        (EchoRecorder("it cannot be captured: x"), f"{parts} of {parts}: it cannot be captured: x"),
    ):
        pieces = GraphPieceRunner(recorder, max_bytes=10**8)
        stack = Backbone(bundled.model, products_of(bundled.model, pack=False), pieces=pieces)
        before = {path.name: path.reason for path in stack.fast_paths()}
        assert before["recorded steps"] == "nothing was recorded"
        stack.record([1], bundled.limits.canvas_size)
        named = {path.name: path.reason for path in stack.fast_paths()}
        assert named["recorded steps"] == reason
        assert named["attention"] == ""
        assert named["experts"] == "no kernels for cpu"
