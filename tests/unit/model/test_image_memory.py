"""What images take of the memory: the tower, one pass of it, and longer chunks."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework_model import precision
from piecework_model.checkpoint import memory
from piecework_model.checkpoint.dimensions import published_tensors, read
from piecework_model.checkpoint.loading import load
from piecework_model.engine.engine import Engine
from piecework_model.text.chat import encode_conversation
from piecework_protocol.conversation import Conversation, Message, Text
from tests.support.model import image_models
from tests.support.model.allocations import allocations
from tests.support.model.model_runs import make_request, run
from tests.support.model.pictures import image_of

FLOAT: memory.Format = ("float32", "float32", "none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_models.write_with_images(tmp_path_factory.mktemp("images"))


def test_the_tower_of_a_bare_configuration_is_the_one_that_transformers_saves(folder: Path) -> None:
    model = read(folder)
    expected = {name: shape for name, shape in model.tensors if precision.is_vision(name)}
    # Two vectors of some models' towers are not counted: they have a number a column.
    small = {name for name in expected if name.endswith(("std_bias", "std_scale"))}
    small |= {name for name in expected if "q_norm" in name or "k_norm" in name}
    counted = {name: shape for name, shape in published_tensors(model.of) if "vision" in name}
    assert counted == {name: shape for name, shape in expected.items() if name not in small}


def test_a_tower_that_is_used_counts_on_the_device_and_is_never_packed(folder: Path) -> None:
    model = read(folder)
    for form in (FLOAT, ("fp8", "float32", "fp8"), ("int4", "float32", "int4")):
        size = memory.weights(model.tensors, form[1], form[2])
        planned = memory.need(model, form, "cpu", 1, 256)
        assert planned.host_bytes == 0
        assert planned.weights_bytes == size.shared_bytes + size.experts_bytes + size.vision_bytes
        assert size.vision_bytes == memory.weights(model.tensors, "float32", "none").vision_bytes


def test_a_checkpoint_without_a_processor_keeps_its_tower_in_host_memory(
    folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        if file.name != "processor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    seeing, blind = read(folder), read(tmp_path)
    assert seeing.of.chunk == image_models.SETTINGS.most_tokens > blind.of.chunk
    one, other = (memory.need(model, FLOAT, "cpu", 1, 256) for model in (seeing, blind))
    assert other.host_bytes == one.weights_bytes - other.weights_bytes > 0
    assert one.work_bytes > other.work_bytes


def test_an_engine_that_sees_images_stays_within_its_plan(folder: Path) -> None:
    loaded = load(folder, device="cpu", dtype="float32")
    shown = [image_of(300, 200, seed) for seed in range(3)]
    asked = Conversation((Message("user", (*shown, Text("which one?"))),))
    prompt = encode_conversation(loaded, asked)
    context = len(prompt.ids) + 2 * image_models.CANVAS
    plan = memory.need(read(folder), FLOAT, "cpu", 2, context)

    def work() -> None:
        engine = Engine(loaded, max_sequences=2, memory_bytes=plan.kv_bytes)
        for number in range(2):
            engine.submit(
                make_request(
                    prompt.ids, f"{number}", images=prompt.images, max_tokens=32, max_steps=3
                )
            )
        assert engine.sequences == 2
        run(engine)

    taken = allocations(work)
    assert taken.peak_bytes <= plan.kv_bytes + plan.work_bytes
    assert taken.peak_bytes > 0.15 * (plan.kv_bytes + plan.work_bytes), "the bound says nothing"
