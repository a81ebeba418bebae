"""Images in a client's requests: how they are made, who gets them, and what they may cost."""

from __future__ import annotations

from functools import partial

import pytest

from piecework.client.gateway.formats.models import model_list
from piecework.client.jobs.output_rates import OutputRate
from piecework.client.jobs.requests import Filters, TextRequest, conversation_of
from piecework.client.jobs.selection import CALLERS_FAULT, Ranking, rank
from piecework.client.journal.records import Memories
from piecework.client.limits import IMAGE_TOKENS_ESTIMATE
from piecework_protocol.conversation import IMAGE_TOKENS, Image, Message, Text
from piecework_protocol.errors import MalformedInput, Reason
from piecework_protocol.offers import takes_images
from piecework_protocol.pricing import price
from piecework_protocol.types import Timestamp
from piecework_protocol.wire import SignedOffer
from tests.support.chain.fake_chain import TOKEN_INFO
from tests.support.market.offers import model, offer
from tests.support.model.pictures import image_of

NOW = 1_800_000_000
PICTURE = image_of(20, 20)
ASKED = TextRequest.of("What is it?", images=[PICTURE], max_tokens=64, seed=1)


def choose(*offers: SignedOffer, request: TextRequest = ASKED) -> Ranking:
    return rank(request, offers, Memories({}), Filters(now=NOW, token=TOKEN_INFO))


def test_the_first_bytes_of_a_file_say_what_it_is() -> None:
    for kind in ("png", "jpeg", "webp"):
        file = image_of(20, 20, kind=kind)
        assert Image.of(file.data) == file
    for data in (b"", b"GIF89a", b"<svg/>", b"RIFFabcdWAVE"):
        with pytest.raises(MalformedInput, match="image/png"):
            Image.of(data)


def test_images_stand_before_the_text_of_the_last_user_message() -> None:
    talk = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    shown = conversation_of(talk, images=[PICTURE, PICTURE]).messages
    assert [message.content for message in shown] == ["a", "b", (PICTURE, PICTURE, Text("c"))]
    with pytest.raises(MalformedInput, match="user message"):
        conversation_of((Message("assistant", "b"),), images=[PICTURE])


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ("{}", None),
        ("not json", None),
        ("[]", None),
        ('{"images": 1}', None),
        ("[" * 100, None),
        ('{"images": true}', True),
        ('{"images": false}', False),
    ],
)
def test_an_offer_says_in_its_details_whether_it_takes_images(
    details: str, said: bool | None
) -> None:
    assert takes_images(offer(details=details).offer) is said


def test_an_image_goes_to_those_who_do_not_say_that_they_take_none() -> None:
    blind, seeing = offer("blind", details='{"images": false}'), offer("seeing")
    ranking = choose(blind, seeing, request=ASKED)
    assert [choice.operator for choice in ranking.choices] == [seeing.offer.operator]
    assert "takes no images" in ranking.unfit[0]
    alone = choose(blind, request=ASKED).mistake
    assert alone is not None
    assert (alone.code, alone.param) == ("images_not_taken", "messages")
    assert Reason.NO_IMAGES in CALLERS_FAULT
    assert choose(blind, request=TextRequest.of("What is it?")).choices


def test_a_quote_and_a_ceiling_count_images() -> None:
    plain = TextRequest.of("What is it?", max_tokens=64, seed=1)
    (without,), (with_one,) = (
        choose(offer("seeing"), request=asked).choices for asked in (plain, ASKED)
    )
    more = with_one.usage.prompt_tokens - without.usage.prompt_tokens
    assert more == IMAGE_TOKENS_ESTIMATE
    assert with_one.expected == price(model(), with_one.usage) > without.expected
    most = [asked.content.outline.prompt_tokens for asked in (plain, ASKED)]
    assert most[1] - most[0] == IMAGE_TOKENS
    assert with_one.ceiling > without.ceiling


def test_the_list_of_models_says_which_take_images() -> None:
    blind, seeing = offer("blind").offer, offer("seeing", details='{"images": true}').offer
    for offers, modalities in (
        ([blind], ["text"]),
        ([blind, seeing], ["text", "image"]),
    ):
        rates = partial(OutputRate.of, memories=Memories(), now=Timestamp(NOW))
        (entry,) = model_list(offers, rates, TOKEN_INFO)["data"]
        assert entry["input_modalities"] == modalities
        assert entry["output_modalities"] == ["text"]
