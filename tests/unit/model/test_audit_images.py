"""A forced audit of a job whose prompt shows images: it reads them as the worker did."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.audit_workers import ServedCanvas, serve
from piecework_model.audit.forced import CanvasFigures, ForcedPass
from piecework_model.audit.scores import scores
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.requests import GenerationRequest
from piecework_model.text.chat import encode_conversation
from piecework_protocol.conversation import Conversation, Image, Message, Part, Text
from tests.support.model import image_models
from tests.support.model.model_runs import make_request
from tests.support.model.pictures import image_of

WIDE, TALL = image_of(300, 200), image_of(50, 90, 1, "jpeg")
OTHER = image_of(300, 200, 7)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = image_models.write_with_images(tmp_path_factory.mktemp("images"), 0.3)
    return load(folder, device="cpu", dtype="float32")


def asked(loaded: LoadedModel, *images: Image, seed: int = 5) -> GenerationRequest:
    parts: tuple[Part, ...] = (Text("what is this? "), *images)
    prompt = encode_conversation(loaded, Conversation((Message("user", parts),)))
    return make_request(
        prompt.ids,
        f"job {seed}",
        images=prompt.images,
        max_tokens=32,
        max_steps=6,
        seed=seed,
        entropy_bound=0.5,
    )


@pytest.fixture(scope="module")
def shown(seeing: LoadedModel) -> list[ServedCanvas]:
    """What an honest worker made of two images."""
    return serve(seeing, [asked(seeing, WIDE, TALL, seed=seed) for seed in range(6)])


def figures(loaded: LoadedModel, canvas: ServedCanvas, request: GenerationRequest) -> CanvasFigures:
    return ForcedPass(loaded).figures(request, canvas.opened(loaded.limits))


def test_an_honest_canvas_behind_images_agrees_with_the_auditor(
    seeing: LoadedModel, shown: list[ServedCanvas]
) -> None:
    assert any(canvas.request.committed for canvas in shown), "one stands behind another canvas"
    for canvas in shown:
        assert len(canvas.request.images) == 2
        found = figures(seeing, canvas, canvas.request)
        assert found.steps == len(canvas.records)
        assert np.abs(found.gap).max() < 0.02
        assert np.nanmax(found.distance) < 1e-4
        assert scores(found).logits < 0.2, "1 is usual for a precision"


@pytest.mark.parametrize("change", ["other pixels", "other order"])
def test_a_worker_that_saw_other_images_shows(
    seeing: LoadedModel, shown: list[ServedCanvas], change: str
) -> None:
    """The prompt has the same ids. Only the pixels are others."""
    first, second = shown[0].request.images
    if change == "other pixels":
        other = asked(seeing, OTHER, TALL).images[0]
        assert other.tokens == first.tokens and other.patches != first.patches
        images = (replace(first, patches=other.patches), second)
    else:
        turned = first.patches[: len(first.patches) // 2], first.patches[len(first.patches) // 2 :]
        images = (replace(first, patches=turned[1] + turned[0]), second)
    claimed = replace(shown[0].request, images=images)
    honest = scores(figures(seeing, shown[0], shown[0].request))
    found = scores(figures(seeing, shown[0], claimed))
    assert found.logits > 10 * honest.logits and found.logits > 0.02
