"""OpenAI's own SDK, synchronously: chat, tools, structured outputs, responses, decisions."""

from __future__ import annotations

import os
from typing import Literal

import openai
from pydantic import BaseModel

MODEL = os.environ["PIECEWORK_MODEL"]


class Weather(BaseModel):
    """The weather of a place."""

    city: str
    degrees: int
    sky: Literal["clear", "cloudy"]


client = openai.OpenAI()
chat = client.chat.completions.create(
    model=MODEL, messages=[{"role": "user", "content": "Hello"}], temperature=0
)
assert chat.choices[0].message.content == "You said: Hello"
tool = openai.pydantic_function_tool(Weather)
parsed = client.chat.completions.parse(
    model=MODEL, messages=[{"role": "user", "content": "Weather?"}], response_format=Weather
)
assert parsed.choices[0].message.parsed == Weather(city="Oslo", degrees=-4, sky="clear")
called = client.chat.completions.parse(
    model=MODEL, messages=[{"role": "user", "content": "Weather?"}], tools=[tool]
)
call = called.choices[0].message.tool_calls[0]
assert call.function.parsed_arguments == Weather(city="Oslo", degrees=-4, sky="clear")
response = client.responses.parse(model=MODEL, input="Weather?", text_format=Weather)
assert response.output_parsed == Weather(city="Oslo", degrees=-4, sky="clear")
with client.responses.stream(model=MODEL, input="Hello") as stream:
    assert stream.get_final_response().output_text == "You said: Hello"
decision = client.decisions.create(
    model=MODEL,
    input="It is dark.",
    questions=[{"type": "predicate", "instructions": "Is it night?"}],
)
assert decision.answers[0].probability == 0.75
print(f"openai {openai.__version__}")
