"""TypeSafe's SDK: questions of each type, an error, the list of models."""

from __future__ import annotations

import os
from importlib.metadata import version

import typesafe_sdk
from typesafe_sdk import TypeSafeUnprocessableEntityError

MODEL = os.environ["PIECEWORK_MODEL"]
client = typesafe_sdk.TypeSafeClient(
    api_key=os.environ["OPENAI_API_KEY"],
    base_url=os.environ["PIECEWORK_URL"],
    model=MODEL,
)
answer = client.system_one(
    state={"message": "I was charged twice."},
    questions={
        "billing": {"type": "noul", "instructions": "Is it about billing?"},
        "tone": {"type": "choice", "criteria": {"angry": "Upset", "calm": None}},
        "urgency": {"type": "score", "criteria": ["later", "soon", "now"]},
    },
)
assert answer.answers["billing"].noul == 0.75
assert answer.answers["tone"].choice == "angry"
assert answer.answers["urgency"].score == 0.375
assert answer.request_id
assert answer.usage.input_tokens > 0
try:
    client.system_one(state="x", questions={"q": {"type": "choice", "criteria": {"one": None}}})
except TypeSafeUnprocessableEntityError as error:
    assert "criteria" in str(error)
else:
    raise AssertionError("a choice of one is refused")
assert client.models.list().models[0].name == MODEL
print(f"typesafe-sdk {version('typesafe-sdk')}")
