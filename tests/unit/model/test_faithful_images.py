"""Images: our processor, vision tower, masks and chunks against transformers' own, from the file's
bytes to the canvases of `generate`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.denoiser import Denoiser
from piecework_model.engine.reference import ReferenceExecutor
from piecework_model.engine.scheduler import PrefillChunk
from piecework_model.requests import GenerationRequest
from piecework_model.text.chat import encode_conversation
from piecework_protocol.conversation import Conversation, Message, Part, Text
from tests.support.model import image_models
from tests.support.model.generate_runs import our_canvases, reference_canvases
from tests.support.model.model_runs import make_request
from tests.support.model.pictures import image_of

EXECUTORS = [ReferenceExecutor, BatchedExecutor]
WIDE, TALL = image_of(300, 200), image_of(50, 90, 1, "jpeg")
SMALL = image_of(12, 9, 2, "webp")  # made larger


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Random weights in float32, so small that where a prompt is cut does not change a token."""
    folder = image_models.write_with_images(tmp_path_factory.mktemp("images"), 0.05)
    return load(folder, device="cpu", dtype="float32")


def asked(*parts: Part) -> Conversation:
    return Conversation((Message("user", parts),))


def request_of(
    loaded: LoadedModel, conversation: Conversation, **changes: Any
) -> GenerationRequest:
    prompt = encode_conversation(loaded, conversation)
    fields = {"images": prompt.images, "max_tokens": 40, "max_steps": 6, "seed": 5, **changes}
    return make_request(prompt.ids, **fields)


def theirs_of(conversation: Conversation, prompt_ids: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """What transformers' processor makes of the images, read from their files by itself."""
    settings = image_models.SETTINGS
    processor = Gemma4ImageProcessorPil(
        patch_size=settings.patch,
        pooling_kernel_size=settings.pooling,
        max_soft_tokens=settings.most_tokens,
    )
    shown = [image for message in conversation.messages for image in message.images]
    opened = [Pillow.open(io.BytesIO(image.data)) for image in shown]
    made = processor(opened, return_tensors="pt")
    kinds = torch.tensor([[int(token == image_models.MARK) for token in prompt_ids]])
    return {
        "pixel_values": made["pixel_values"],
        "image_position_ids": made["image_position_ids"],
        "mm_token_type_ids": kinds,
    }


CONVERSATIONS = {
    "one image": asked(Text("what is this? "), WIDE),
    "an image first": asked(TALL, Text("and what is that?")),
    "two images side by side": asked(WIDE, TALL),
    "three images with text between": asked(
        Text("one "), SMALL, Text(" two "), TALL, Text(" three "), WIDE, Text(" which is larger?")
    ),
    "an image far before the window": asked(WIDE, Text("and then " * 12)),
    "an image behind the window": asked(Text("and then " * 12), WIDE),
    "images in two messages": Conversation(
        (
            Message("user", (Text("look"), TALL)),
            Message("assistant", "I see"),
            Message("user", (SMALL, Text("and now?"))),
        )
    ),
}


def canvases_of(loaded: LoadedModel, wanted: GenerationRequest) -> list[list[tuple[int, ...]]]:
    return our_canvases(
        BatchedExecutor(loaded.model, loaded.limits), loaded.limits, wanted, loaded.eos_ids
    )


@pytest.mark.parametrize("make", EXECUTORS)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_images_give_the_canvases_of_generate(
    seeing: LoadedModel, name: str, make: type[ReferenceExecutor | BatchedExecutor]
) -> None:
    """`generate` gets the whole prompt at once. We cut it into chunks."""
    wanted = request_of(seeing, CONVERSATIONS[name])
    images = theirs_of(CONVERSATIONS[name], wanted.prompt_ids)
    theirs = reference_canvases(seeing.model, wanted, seeing.eos_ids, None, **images)
    executor = make(seeing.model, seeing.limits)
    assert our_canvases(executor, seeing.limits, wanted, seeing.eos_ids) == theirs


def test_an_image_up_to_the_edge_of_the_context_gives_the_canvases_of_generate(
    seeing: LoadedModel,
) -> None:
    text = "and then " * 40 + "so"
    used = len(encode_conversation(seeing, asked(Text(text), WIDE)).ids)
    room = image_models.CONTEXT - 2 * image_models.CANVAS - used
    conversation = asked(Text(text + "x" * room), WIDE)
    wanted = request_of(seeing, conversation, max_tokens=2 * image_models.CANVAS)
    assert seeing.limits.sequence_tokens(wanted) == image_models.CONTEXT
    images = theirs_of(conversation, wanted.prompt_ids)
    theirs = reference_canvases(seeing.model, wanted, seeing.eos_ids, None, **images)
    assert canvases_of(seeing, wanted) == theirs


def test_the_text_depends_on_the_pixels_and_on_the_order_of_images(seeing: LoadedModel) -> None:
    again = image_of(300, 200, 9)
    texts = [
        canvases_of(seeing, request_of(seeing, asked(Text("what? "), *images)))
        for images in ((WIDE, TALL), (again, TALL), (TALL, WIDE))
    ]
    assert texts[0] != texts[1] != texts[2] != texts[0]


@pytest.mark.parametrize("direction", ["vision", None])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_prompt_in_one_chunk_has_the_keys_and_values_of_transformers_bit_for_bit(
    name: str, direction: str | None, tmp_path: Path
) -> None:
    """With large weights, in both kinds of layers, where images see both ways and where not."""
    folder = image_models.write_with_images(tmp_path, use_bidirectional_attention=direction)
    loaded = load(folder, device="cpu", dtype="float32")
    wanted = request_of(loaded, CONVERSATIONS[name])
    images = theirs_of(CONVERSATIONS[name], wanted.prompt_ids)
    encoder, denoiser = loaded.model.model.encoder, Denoiser(loaded.model, loaded.limits.images)
    theirs, ours = denoiser.new_cache(), denoiser.new_cache()
    places = torch.arange(len(wanted.prompt_ids))[None]
    with torch.inference_mode():
        masks = encoder.create_masks_for_generate(
            config=loaded.model.config,
            inputs_embeds=torch.empty((1, len(wanted.prompt_ids), 0)),
            attention_mask=torch.ones((1, len(wanted.prompt_ids)), dtype=torch.bool),
            past_key_values=theirs,
            position_ids=places,
            mm_token_type_ids=images.pop("mm_token_type_ids"),
        )
        encoder(
            input_ids=torch.tensor([wanted.prompt_ids]),
            attention_mask=masks,
            past_key_values=theirs,
            position_ids=places,
            **images,
        )
        denoiser.prefill(ours, PrefillChunk(wanted.prompt_ids, wanted.images))
    for one, other in zip(theirs.layers, ours.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
