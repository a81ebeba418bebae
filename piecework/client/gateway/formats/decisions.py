"""Decisions in two wire shapes: `decisions` (OpenAI's) and `systemone` (TypeSafe's). Pure.

Both take a state and typed questions, and give probabilities. Each question becomes a question of a
read job with one label for each answer.

The confidence of a choice or a score is (n * peak - 1) / (n - 1), where peak is the largest of n
probabilities: 0 when all are equal, 1 when one has all. Other vendors take 1 - H / ln n, which
falls faster. `piecework.draws` asks for several samples. Then the answers are their means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from piecework.client.gateway.formats import content
from piecework.client.gateway.formats.common import (
    ApiError,
    Fields,
    FormatOptions,
    Totals,
    Wanted,
    bad,
    plain_text,
    take_wanted,
    wrong,
)
from piecework.client.gateway.formats.items import input_messages
from piecework_protocol.conversation import Conversation, Image, Message, Part, Text
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.read import Label, Question
from piecework_protocol.limits import MAX_IMAGES_PER_PROMPT, MAX_LABELS, MAX_QUESTIONS

YES_NO: Final = (Label("yes"), Label("no"))
MAX_LEVELS: Final = 10
MAX_NAME: Final = 256
_MULTIPART: Final = "images come in the JSON body as data_base64, not as parts of a form"


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of a request.

    kind: as the request names it. name: its name, or None. values: what each label stands for:
    the text or bool of a choice, the label of a level. legend: of a score, its levels as given.
    """

    kind: str
    name: str | None
    question: Question
    values: tuple[Any, ...] = ()
    legend: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadAsk:
    """A parsed request: what to decide, and how to answer."""

    wanted: Wanted
    conversation: Conversation
    asked: tuple[Asked, ...]
    ignored: tuple[str, ...]

    @property
    def questions(self) -> tuple[Question, ...]:
        """What is decided."""
        return tuple(one.question for one in self.asked)


def confidence(probabilities: Sequence[float]) -> float:
    """Return how far the largest probability stands out, from 0 to 1."""
    n = len(probabilities)
    return max(0.0, min(1.0, (n * max(probabilities) - 1) / (n - 1)))


def _question(instructions: str, labels: tuple[Label, ...], where: str) -> Question:
    try:
        return Question(instructions, labels)
    except MalformedInput as error:
        raise wrong(str(error), where) from None


# --- OpenAI's


def parse_decision(body: Any, options: FormatOptions = FormatOptions()) -> ReadAsk:  # noqa: B008
    """Parse the JSON body of a decision.

    Raises:
        ApiError: A field cannot be used (400). It names the field.
    """
    fields = Fields(body, options)
    wanted = take_wanted(fields, options)
    messages = input_messages(fields.take("input"), "input")
    raw = fields.items("questions", MAX_QUESTIONS, least=1)
    return ReadAsk(
        wanted,
        content.conversation(messages, (), thinking=False, where="input"),
        tuple(_asked(item, f"questions[{i}]") for i, item in enumerate(raw)),
        fields.rest(),
    )


def _asked(item: Any, where: str) -> Asked:
    if not isinstance(item, dict):
        bad("a question is an object", where)
    kind, name = item.get("type"), item.get("name")
    if name is not None:
        plain_text(name, f"{where}.name", longest=MAX_NAME)
    told = _told(item.get("instructions"), f"{where}.instructions")
    if kind == "predicate":
        return Asked(kind, name, _question(told, YES_NO, where))
    if kind == "choice":
        choices = _objects(item.get("choices"), 2, MAX_LABELS, f"{where}.choices")
        values = tuple(_value(choice, f"{where}.choices") for choice in choices)
        names = _names(values)
        labels = _labels(names, [one.get("description") for one in choices], f"{where}.choices")
        return Asked(kind, name, _question(told, labels, f"{where}.choices"), values)
    if kind == "score":
        levels = _objects(item.get("levels"), 2, MAX_LABELS, f"{where}.levels")
        marks = tuple(plain_text(one.get("label"), f"{where}.levels") for one in levels)
        names = tuple(f"{i}: {mark}" for i, mark in enumerate(marks))
        labels = _labels(names, [one.get("description") for one in levels], f"{where}.levels")
        return Asked(kind, name, _question(told, labels, f"{where}.levels"), marks)
    raise wrong("a question's type is predicate, choice or score", f"{where}.type")


def _told(raw: Any, where: str) -> str:
    """The instructions of a question: a text, or parts that are texts or JSON."""
    found = content.content(raw, where)
    if not isinstance(found, str):
        bad("an image belongs to the input, not to a question", where)
    return found


def _objects(raw: Any, least: int, most: int, where: str) -> list[dict[str, Any]]:
    if not isinstance(raw, list) or not least <= len(raw) <= most:
        bad(f"{where} is a list of {least} to {most}", where)
    if not all(isinstance(one, dict) for one in raw):
        bad(f"{where} is a list of objects", where)
    return raw


def _value(choice: Mapping[str, Any], where: str) -> str | bool:
    value = choice.get("value")
    return value if isinstance(value, bool) else plain_text(value, where)


def _names(values: Sequence[str | bool]) -> tuple[str, ...]:
    """Labels' names. The text "true" and the value true are two choices."""
    written = {value for value in values if isinstance(value, str)}
    names = []
    for value in values:
        name = value if isinstance(value, str) else str(value).lower()
        names.append(f"{name} (bool)" if isinstance(value, bool) and name in written else name)
    return tuple(names)


def _labels(names: Sequence[str], descriptions: Sequence[Any], where: str) -> tuple[Label, ...]:
    return tuple(
        Label(
            plain_text(name, where),
            "" if description is None else plain_text(description, where),
        )
        for name, description in zip(names, descriptions, strict=True)
    )


def decision(
    model: str,
    asked: Sequence[Asked],
    answers: Sequence[Sequence[float]],
    totals: Totals,
    ours: Mapping[str, Any],
) -> dict[str, Any]:
    """Render the answer of `decisions`. `answers`: the probabilities of each question's labels."""
    return {
        "model": model,
        "answers": [
            _decided(one, probabilities) for one, probabilities in zip(asked, answers, strict=True)
        ],
        "usage": totals.response_usage(),
        "piecework": ours,
    }


def _decided(one: Asked, probabilities: Sequence[float]) -> dict[str, Any]:
    head = {"type": one.kind, "name": one.name}
    if one.kind == "predicate":
        return {**head, "probability": probabilities[0]}
    sure = confidence(probabilities)
    if one.kind == "choice":
        shown = [
            {"value": value, "probability": p}
            for value, p in zip(one.values, probabilities, strict=True)
        ]
        best = one.values[_argmax(probabilities)]
        return {**head, "choice": best, "confidence": sure, "probabilities": shown}
    levels = [
        {"value": i, "label": label, "probability": p}
        for i, (label, p) in enumerate(zip(one.values, probabilities, strict=True))
    ]
    score = _expected(probabilities)
    return {**head, "score": score, "confidence": sure, "probabilities": levels}


def _argmax(probabilities: Sequence[float]) -> int:
    return max(range(len(probabilities)), key=lambda i: (probabilities[i], -i))


def _expected(probabilities: Sequence[float]) -> float:
    return sum(i * p for i, p in enumerate(probabilities))


# --- TypeSafe's


def parse_systemone(body: Any, options: FormatOptions = FormatOptions()) -> ReadAsk:  # noqa: B008
    """Parse the JSON body of a `systemone` request.

    Raises:
        ApiError: A field cannot be used. It names the field.
    """
    fields = Fields(body, options)
    wanted = take_wanted(fields, options)
    assets = _assets(fields.take("assets"))
    state = fields.take("state")
    if not isinstance(state, str | dict | list):
        bad("state is a text, an object or a list", "state")
    raw = fields.take("questions")
    if not isinstance(raw, dict) or not 1 <= len(raw) <= MAX_QUESTIONS:
        bad(f"questions is an object of 1 to {MAX_QUESTIONS}", "questions")
    message = Message("user", _with_assets(_written(state, "state"), assets))
    return ReadAsk(
        wanted,
        content.conversation([message], (), thinking=False, where="state"),
        tuple(_named(name, item, assets) for name, item in raw.items()),
        fields.rest(),
    )


def _named(name: str, item: Any, assets: Mapping[str, Image]) -> Asked:
    plain_text(name, "questions", longest=MAX_NAME)
    where = f"questions.{name[:60]}"
    if not isinstance(item, dict):
        bad("a question is an object", where)
    kind, criteria = item.get("type"), item.get("criteria")
    raw = item.get("instructions")
    told = "" if raw is None else _written(raw, f"{where}.instructions")
    if kind == "noul":
        found = Asked(kind, name, _question(told, _yes_no(criteria, where), where))
    elif kind == "choice":
        found = _chosen(name, told, criteria, f"{where}.criteria")
    elif kind == "score":
        found = _scored(name, told, criteria, f"{where}.criteria")
    else:
        raise wrong("a question's type is noul, choice or score", f"{where}.type")
    texts = [told, *(label.name + label.description for label in found.question.labels)]
    if any(asset in text for asset in assets for text in texts):
        bad("an image belongs to the state, not to a question", where)
    return found


def _yes_no(criteria: Any, where: str) -> tuple[Label, ...]:
    told = {} if criteria is None else criteria
    if not isinstance(told, dict):
        bad("criteria is an object with true and false", f"{where}.criteria")
    return tuple(
        Label(label.name, _described(told.get(key), f"{where}.criteria.{key}"))
        for label, key in zip(YES_NO, ("true", "false"), strict=True)
    )


def _chosen(name: str, told: str, criteria: Any, where: str) -> Asked:
    if not isinstance(criteria, dict) or not 2 <= len(criteria) <= MAX_LABELS:
        bad(f"criteria is an object of 2 to {MAX_LABELS} choices", where)
    labels = tuple(
        Label(plain_text(value, where), _described(text, where)) for value, text in criteria.items()
    )
    return Asked("choice", name, _question(told, labels, where), tuple(criteria))


def _scored(name: str, told: str, criteria: Any, where: str) -> Asked:
    if not isinstance(criteria, list) or not 2 <= len(criteria) <= MAX_LEVELS:
        bad(f"criteria is a list of 2 to {MAX_LEVELS} levels", where)
    labels = tuple(Label(str(i), _written(level, where)) for i, level in enumerate(criteria))
    return Asked("score", name, _question(told, labels, where), legend=tuple(criteria))


def _described(raw: Any, where: str) -> str:
    return "" if raw is None else _written(raw, where)


def _written(raw: Any, where: str) -> str:
    """A text as it is, or an object or list as one line of JSON."""
    if isinstance(raw, str):
        return plain_text(raw, where)
    if not isinstance(raw, dict | list):
        bad(f"{where} is a text, an object or a list", where)
    return plain_text(content.compact(raw), where)


def _assets(raw: Any) -> dict[str, Image]:
    """Read images by the placeholders that stand for them."""
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not 1 <= len(raw) <= MAX_IMAGES_PER_PROMPT:
        bad(f"assets is an object of 1 to {MAX_IMAGES_PER_PROMPT}", "assets")
    found = {}
    for name, item in raw.items():
        where = f"assets.{name[:60]}"
        if not name or not isinstance(item, dict):
            bad("an asset is an object with a name", where)
        if item.get("part") is not None:
            bad(_MULTIPART, where, code="unsupported_parameter")
        encoded = plain_text(item.get("data_base64"), f"{where}.data_base64")
        found[name] = content.image_of(encoded, where)
    return found


def _with_assets(text: str, assets: Mapping[str, Image]) -> str | tuple[Part, ...]:
    """Put the images where their placeholders stand."""
    if not assets:
        return text
    longest_first = sorted(assets, key=len, reverse=True)
    names = "|".join(map(re.escape, longest_first))
    pieces = re.split(f"({names})", text, maxsplit=MAX_IMAGES_PER_PROMPT + 1)
    if len(pieces) > 2 * MAX_IMAGES_PER_PROMPT + 1:
        bad(f"a prompt has at most {MAX_IMAGES_PER_PROMPT} images", "state")
    return content.joined(assets[piece] if piece in assets else Text(piece) for piece in pieces)


def systemone(
    model: str,
    asked: Sequence[Asked],
    answers: Sequence[Sequence[float]],
    totals: Totals,
    ours: Mapping[str, Any],
) -> dict[str, Any]:
    """Render the answer of `systemone`."""
    return {
        "model": model,
        "answers": {
            one.name: _noted(one, probabilities)
            for one, probabilities in zip(asked, answers, strict=True)
        },
        "usage": {"input_tokens": totals.prompt_tokens, "output_tokens": totals.output_tokens},
        "piecework": ours,
    }


def _noted(one: Asked, probabilities: Sequence[float]) -> dict[str, Any]:
    if one.kind == "noul":
        return {"type": "noul", "noul": probabilities[0]}
    sure = confidence(probabilities)
    if one.kind == "choice":
        shown = dict(zip(one.values, probabilities, strict=True))
        best = one.values[_argmax(probabilities)]
        return {"type": "choice", "choice": best, "confidence": sure, "probabilities": shown}
    return {
        "type": "score",
        "score": _expected(probabilities),
        "confidence": sure,
        "legend": {str(i): level for i, level in enumerate(one.legend)},
        "probabilities": {str(i): p for i, p in enumerate(probabilities)},
    }


def systemone_error(error: ApiError) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of a failure in TypeSafe's shape."""
    if error.status == 400 and error.kind == "invalid_request_error":
        where = ["body", *(error.param or "").split(".")] if error.param else ["body"]
        return 422, {"detail": [{"loc": where, "msg": error.message, "type": error.code}]}
    kind = "api_usage_error" if error.status == 400 else error.code
    return error.status, {"detail": {"error_type": kind, "message": error.message}}


def metadata(model: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a model as TypeSafe's list of models does."""
    released = datetime.fromtimestamp(model["created"], UTC).date()
    kinds = ", ".join(model["piecework"]["kinds"])
    return {
        "name": model["id"],
        "description": f"Served by {model['piecework']['workers']} workers: {kinds}.",
        "release_date": released.isoformat(),
    }


def means(sums: Sequence[Sequence[int]], whole: int, draws: int) -> list[list[float]]:
    """Return mean probabilities from sums over draws. `whole` is what stands for one."""
    return [[share / (whole * draws) for share in question] for question in sums]
