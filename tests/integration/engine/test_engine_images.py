"""Images through the real engine process: from a job's content to canvases, and broken files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from piecework_model.checkpoint.loading import load
from piecework_model.requests import CanvasEvent, CanvasFinish
from piecework_node.engine.link import EngineReady
from piecework_node.errors import PromptRejected
from piecework_protocol.conversation import Conversation, Image, Message, Text
from piecework_protocol.kinds.text import TextContent
from tests.support.model import image_models
from tests.support.model.engine_process import cpu_engine
from tests.support.model.model_runs import canvases, make_request, run_alone
from tests.support.model.pictures import image_of

ROOT = Path(__file__).resolve().parents[3]


def showing(image: Image) -> TextContent:
    return TextContent(Conversation((Message("user", (Text("what is it? "), image)),)))


@pytest.mark.process
@pytest.mark.slow
async def test_an_image_reaches_the_model_and_a_broken_one_ends_nothing(tmp_path: Path) -> None:
    folder = image_models.write_with_images(tmp_path / "seeing", 0.05)
    engine = cpu_engine(str(folder), precision="float32")
    task = asyncio.ensure_future(engine.run())
    try:
        async with asyncio.timeout(180):
            events = aiter(engine.events())
            ready = await anext(events)
            assert isinstance(ready, EngineReady)
            assert ready.facts.images
            assert "pillow-" in str(ready.facts.details["profile"])
            with pytest.raises(PromptRejected, match="cannot be read as image/png"):
                await engine.encode(showing(Image("image/png", b"no picture")))
            encoded = await engine.encode(showing(image_of(300, 200)))
            request = make_request(
                encoded.prompt_ids, images=encoded.images, max_tokens=16, max_steps=3, draft_every=0
            )
            engine.start(request)
            event = await anext(events)
            while not isinstance(event, CanvasEvent) or event.finish is CanvasFinish.MORE:
                event = await anext(events)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    loaded = load(folder, device="cpu", dtype="float32")
    assert event == canvases(run_alone(loaded, request))[-1]
