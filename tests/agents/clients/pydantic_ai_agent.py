"""Pydantic AI: an agent with a tool, and structured outputs by tool and by schema."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

MODEL = os.environ["PIECEWORK_MODEL"]


class Weather(BaseModel):
    """The weather of a place."""

    city: str
    degrees: int
    sky: Literal["clear", "cloudy"]


provider = OpenAIProvider()
for kind in (OpenAIChatModel, OpenAIResponsesModel):
    model = kind(MODEL, provider=provider)
    assert Agent(model).run_sync("Hello").output == "You said: Hello"
    agent = Agent(model)

    @agent.tool_plain
    def get_weather(city: str, days: int) -> str:
        """Tell the weather of a city."""
        return f"sunny in {city} for {days} days"

    assert agent.run_sync("Weather?").output == "The tool said: sunny in Oslo for 2 days"
    wanted = Weather(city="Oslo", degrees=-4, sky="clear")
    assert Agent(model, output_type=Weather).run_sync("Weather?").output == wanted
    assert Agent(model, output_type=NativeOutput(Weather)).run_sync("Weather?").output == wanted
print(f"pydantic-ai {version('pydantic-ai-slim')}")
