"""Images of strangers: what they become, where they stand in a prompt, and what is refused."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from piecework_model import bounds, limits
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.errors import CheckpointError, InvalidRequestError, PromptError
from piecework_model.kinds import encode
from piecework_model.machine.probe import engine_profile, probe
from piecework_model.requests import PromptImage
from piecework_model.text.chat import encode_conversation
from piecework_model.text.images import (
    ImageError,
    ImageProcessor,
    ImageSettings,
    MeasuredImage,
    find_settings,
)
from piecework_protocol.conversation import Conversation, Image, Message, Part, Text
from piecework_protocol.kinds.read import Label, Question, ReadContent
from tests.support.model import image_models
from tests.support.model.image_models import BEGIN, END, MARK
from tests.support.model.model_runs import make_request
from tests.support.model.pictures import as_file, image_of, picture

PUBLISHED = ImageProcessor(ImageSettings(), 255_999, 258_880, 258_882)
SMALL = ImageProcessor(image_models.SETTINGS, BEGIN, MARK, END)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = image_models.write_with_images(tmp_path_factory.mktemp("images"))
    return load(folder, device="cpu", dtype="float32")


def prepared(image: Image, processor: ImageProcessor = SMALL) -> PromptImage:
    (measured,) = processor.measure([image])
    return processor.decode(measured)


def pixels(made: PromptImage, patch: int = 4) -> np.ndarray:
    """The patches put together again, [height, width, 3]."""
    parts = np.frombuffer(made.patches, np.uint8).reshape(made.rows, made.columns, patch, patch, 3)
    return parts.transpose(0, 2, 1, 3, 4).reshape(made.rows * patch, made.columns * patch, 3)


def asked(*parts: Part) -> Conversation:
    return Conversation((Message("user", parts),))


# --- what an image becomes


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [(960, 672, 280), (1000, 1000, 256), (1, 1, 256), (4000, 100, 210), (100, 4000, 210)],
)
def test_the_published_processor_makes_at_most_280_tokens_whatever_the_size(
    width: int, height: int, tokens: int
) -> None:
    made = prepared(image_of(width, height), PUBLISHED)
    assert made.tokens == tokens == made.columns * made.rows // 9 <= 280
    assert len(made.patches) == made.columns * made.rows * 3 * 16**2


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    shown = picture(84, 120)
    assert np.array_equal(pixels(prepared(as_file(shown))), np.array(shown))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_same_bytes_give_the_same_patches(kind: str) -> None:
    image = image_of(300, 200, kind=kind)
    assert prepared(image) == prepared(image)
    assert prepared(image) != prepared(image_of(300, 200, 1, kind))


def test_what_is_transparent_becomes_white() -> None:
    clear = Pillow.new("RGBA", (84, 120), (255, 0, 0, 0))
    assert (pixels(prepared(as_file(clear))) == 255).all()


def test_a_photo_is_turned_as_its_camera_noted() -> None:
    upright = picture(120, 84)
    turned = upright.transpose(Pillow.Transpose.ROTATE_90)
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    made = prepared(as_file(turned, "png", exif=exif))
    assert np.array_equal(pixels(made), np.array(upright))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_every_mode_of_a_file_is_shown_in_colour(mode: str) -> None:
    kind = "jpeg" if mode == "CMYK" else "png"
    shown = picture(84, 120)
    if mode == "I;16":
        converted = Pillow.fromarray(np.array(shown.convert("L")).astype(np.uint16) * 257)
    else:
        converted = shown.convert(mode)
    assert converted.mode == mode
    assert pixels(prepared(as_file(converted, kind))).shape == (120, 84, 3)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_files_are_shown_or_refused_and_nothing_else(
    kind: str, data: st.DataObject
) -> None:
    whole = image_of(20, 30, kind=kind).data
    cut = data.draw(st.integers(1, len(whole)))
    place = data.draw(st.integers(0, cut - 1))
    damaged = bytearray(whole[:cut])
    damaged[place : place + 4] = data.draw(st.binary(min_size=1, max_size=4))
    try:
        made = prepared(Image(f"image/{kind}", bytes(damaged)))
    except ImageError:
        return
    assert 0 < made.tokens <= image_models.SETTINGS.most_tokens


# --- what is refused


def bomb(width: int, height: int) -> Image:
    """A PNG whose header says more than its file holds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 << 16))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return Image("image/png", data)


def scans(count: int) -> Image:
    """A progressive JPEG whose last scan comes so many more times. Each is some 30 bytes."""
    file = io.BytesIO()
    picture(40, 40).convert("L").save(file, "JPEG", progressive=True)
    whole = file.getvalue()[:-2]
    last = whole[whole.rfind(b"\xff\xda") :]
    return Image("image/jpeg", whole + count * last + b"\xff\xd9")


def animated(kind: str) -> Image:
    file = io.BytesIO()
    frames = [picture(40, 40, seed) for seed in range(3)]
    frames[0].save(file, kind.upper(), save_all=True, append_images=frames[1:], lossless=True)
    return Image(f"image/{kind}", file.getvalue())


BROKEN: dict[str, tuple[Callable[[], Image], str]] = {
    "no image": (lambda: Image("image/png", b"png"), "cannot be read as image/png"),
    "misnamed": (
        lambda: replace(image_of(40, 40), media_type="image/jpeg"),
        "cannot be read as image/jpeg",
    ),
    "another format": (
        lambda: Image("image/png", b"GIF89a" + bytes(40)),
        "cannot be read as image/png",
    ),
    "cut off": (
        lambda: replace(image_of(40, 40), data=image_of(40, 40).data[:-300]),
        "cannot be read",
    ),
    "a wrong checksum": (
        lambda: replace(image_of(40, 40), data=image_of(40, 40).data[:60] + bytes(80)),
        "cannot be read",
    ),
    "a bomb": (lambda: bomb(16_000, 16_000), "16000 x 16000 pixels, at most 16777216|cannot be"),
    "just too large": (lambda: bomb(4097, 4096), "4097 x 4096 pixels, at most 16777216"),
    "one long row": (lambda: bomb(16_385, 1), "16385 x 1 pixels, at most 16384 on a side"),
    "one long column": (lambda: bomb(1, 2**24), "1 x 16777216 pixels, at most 16384 on a side"),
    "a long JPEG": (
        lambda: as_file(Pillow.new("RGB", (1, 16_385)), "jpeg"),
        "1 x 16385 pixels, at most 16384 on a side",
    ),
    "a JPEG that takes minutes": (lambda: scans(limits.MAX_JPEG_SCANS), "more than 64 scans"),
    "animated png": (lambda: animated("png"), "animated"),
    "animated webp": (lambda: animated("webp"), "animated"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_refused_by_name(name: str) -> None:
    make, why = BROKEN[name]
    with pytest.raises(ImageError, match=why):
        prepared(make())


def test_a_progressive_photo_is_shown() -> None:
    assert prepared(scans(0)) and prepared(scans(10))


def test_the_images_of_a_prompt_are_bounded_together() -> None:
    large = as_file(Pillow.new("RGB", (4096, 4096)))
    assert limits.MAX_PROMPT_PIXELS == 2 * 4096**2
    first, second = SMALL.measure([large, large])
    assert first.tokens == second.tokens == SMALL.decode(first).tokens
    with pytest.raises(ImageError, match="pixels together"):
        SMALL.measure([large, large, large])


class CountingProcessor(ImageProcessor):
    """The small processor, with a count of what it decodes."""

    def __init__(self) -> None:
        super().__init__(image_models.SETTINGS, BEGIN, MARK, END)
        self.decoded = 0

    def decode(self, measured: MeasuredImage) -> PromptImage:
        """Decode, and count."""
        self.decoded += 1
        return super().decode(measured)


def test_no_image_is_decoded_of_a_prompt_that_does_not_fit(seeing: LoadedModel) -> None:
    processor = CountingProcessor()
    model = replace(seeing, images=processor)
    conversation = asked(image_of(60, 60), image_of(90, 50), Text("and what else is there?"))
    whole = len(encode_conversation(model, conversation, most=1000).ids)
    assert processor.decoded == 2
    for most in (10, 100, whole - 1):
        assert len(encode_conversation(model, conversation, most=most).ids) == most + 1
    assert processor.decoded == 2


@pytest.mark.parametrize("size", [(300, 200), (50, 90), (7, 400), (400, 7), (48, 48), (1, 1)])
def test_the_tokens_of_an_image_are_counted_from_its_header(size: tuple[int, int]) -> None:
    for processor in (SMALL, PUBLISHED):
        (measured,) = processor.measure([image_of(*size)])
        assert processor.decode(measured).tokens == measured.tokens


# --- where an image stands


def test_an_image_stands_between_its_two_marks(seeing: LoadedModel) -> None:
    wide, tall = image_of(300, 200), image_of(50, 90)
    prompt = encode_conversation(seeing, asked(Text(" see "), wide, Text("or\n"), tall))
    written = seeing.tokenizer.encode_template
    first, second = prompt.images
    assert prompt.ids == (
        *written("<bos><|turn>user\nsee<|image>"),
        *[MARK] * first.tokens,
        *written("<image|>or<|image>"),
        *[MARK] * second.tokens,
        *written("<image|><turn|>\n<|turn>model\n<|channel>thought\n<channel|>"),
    )
    for image in prompt.images:
        assert prompt.ids[image.start - 1] == BEGIN
        assert prompt.ids[image.start + image.tokens] == END


def test_marks_that_a_person_types_stay_text(seeing: LoadedModel) -> None:
    typed = "<|image|><|image><image|>"
    prompt = encode_conversation(seeing, asked(Text(typed), image_of(60, 60), Text(typed)))
    assert prompt.ids.count(MARK) == prompt.images[0].tokens
    assert (prompt.ids.count(BEGIN), prompt.ids.count(END)) == (1, 1)
    assert seeing.tokenizer.decode(prompt.ids).count("<|image|>") == 2


def test_a_prompt_that_is_longer_than_wanted_has_no_images(seeing: LoadedModel) -> None:
    conversation = asked(image_of(60, 60))
    whole = len(encode_conversation(seeing, conversation).ids)
    assert len(encode_conversation(seeing, conversation, most=whole).images) == 1
    cut = encode_conversation(seeing, conversation, most=whole - 1)
    assert (len(cut.ids), cut.images) == (whole, ())


def test_a_read_shows_its_images(seeing: LoadedModel) -> None:
    question = Question("Is it red?", (Label("yes"), Label("no")))
    content = ReadContent(asked(Text("look"), image_of(60, 60)), (question,))
    encoded = encode(seeing, content, 16, 512)
    (image,) = encoded.images
    assert encoded.prompt_ids[image.start : image.start + image.tokens] == (MARK,) * image.tokens


def test_a_template_that_does_not_show_images_is_named(seeing: LoadedModel, tmp_path: Path) -> None:
    folder = image_models.write_with_images(tmp_path)
    (folder / "chat_template.jinja").write_text("{{- messages[0]['content'][0]['text'] -}}")
    blind = load(folder, device="cpu")
    with pytest.raises(PromptError, match="does not show every image exactly once"):
        encode_conversation(blind, asked(Text("look"), image_of(60, 60)))


# --- which checkpoints take images


def test_the_bundled_checkpoint_takes_no_images_and_says_why(bundled: LoadedModel) -> None:
    assert bundled.images is None
    assert bundled.without_images == "the checkpoint has no processor_config.json"
    with pytest.raises(PromptError, match="takes no images"):
        encode_conversation(bundled, asked(image_of(60, 60)))
    with pytest.raises(InvalidRequestError, match="takes none"):
        image = PromptImage(1, 1, 3, 3, bytes(432))
        bounds.check(make_request((2, 3), images=(image,)), bundled.limits, bundled.eos_ids)


def test_the_profile_names_what_decodes_images(seeing: LoadedModel, bundled: LoadedModel) -> None:
    hardware = probe()
    assert "/pillow-" in engine_profile(seeing, hardware, "kernels")
    assert "pillow" not in engine_profile(bundled, hardware, "kernels")


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"do_normalize": True}, "do_normalize is not False"),
    ({"do_resize": False}, "do_resize is not True"),
    ({"patch_size": 8}, "cuts other patches than the vision tower takes"),
    ({"max_soft_tokens": 140}, "wider than the vision tower has positions"),
]


@pytest.mark.parametrize(("changes", "why"), SETTINGS)
def test_a_processor_that_is_not_the_published_one_takes_no_images(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    config = image_models.image_config(376, 0.05).to_dict()
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps(image_models.PROCESSOR))
    assert find_settings(tmp_path, config) == image_models.SETTINGS
    path.write_text(
        json.dumps({"image_processor": image_models.PROCESSOR["image_processor"] | changes})
    )
    found = find_settings(tmp_path, config)
    assert isinstance(found, str)
    assert why in found


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": 0},
        {"patch_size": "16"},
        {"max_soft_tokens": 300},
        {"rescale_factor": "x"},
        {"pooling_kernel_size": 1 << 20},
    ],
)
def test_a_processor_with_impossible_values_is_refused_by_file(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(changes))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        find_settings(tmp_path, {})


# --- requests with images


GOOD = PromptImage(2, 2, 6, 3, bytes(18 * 48))


@pytest.mark.parametrize(
    "image",
    [
        replace(GOOD, start=1),
        replace(GOOD, start=3),
        replace(GOOD, start=-1),
        replace(GOOD, tokens=1),
        replace(GOOD, columns=3, rows=6, tokens=3),
        replace(GOOD, columns=2, rows=9),
        replace(GOOD, columns=0),
        replace(GOOD, patches=bytes(17 * 48)),
        "image",
    ],
)
def test_an_image_that_does_not_fit_its_prompt_is_refused(seeing: LoadedModel, image: Any) -> None:
    prompt = (2, BEGIN, MARK, MARK, END, 30)
    bounds.check(make_request(prompt, images=(GOOD,)), seeing.limits, seeing.eos_ids)
    with pytest.raises(InvalidRequestError, match="images"):
        bounds.check(make_request(prompt, images=(image,)), seeing.limits, seeing.eos_ids)
    with pytest.raises(InvalidRequestError, match="images"):
        bounds.check(make_request(prompt, images=(GOOD, GOOD)), seeing.limits, seeing.eos_ids)
