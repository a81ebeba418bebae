"""Instructor: structured outputs by tool, by JSON and by schema."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Literal

import instructor
import openai
from pydantic import BaseModel

MODEL = os.environ["PIECEWORK_MODEL"]


class Weather(BaseModel):
    """The weather of a place."""

    city: str
    degrees: int
    sky: Literal["clear", "cloudy"]


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(), mode=mode)
    found = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Weather?"}],
        response_model=Weather,
        max_retries=0,
    )
    assert found.model_dump() == {"city": "Oslo", "degrees": -4, "sky": "clear"}, mode
print(f"instructor {version('instructor')}, openai {openai.__version__}")
