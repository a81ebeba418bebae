"""LangChain: a chat, a stream, bound tools, structured output in its three ways."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

MODEL = os.environ["PIECEWORK_MODEL"]


class Weather(BaseModel):
    """The weather of a place."""

    city: str
    degrees: int
    sky: Literal["clear", "cloudy"]


@tool
def get_weather(city: str, days: int) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city} for {days} days"


model = ChatOpenAI(model=MODEL, temperature=0)
assert model.invoke("Hello").content == "You said: Hello"
assert "".join(chunk.content for chunk in model.stream("Hello")) == "You said: Hello"
bound = model.bind_tools([get_weather])
question = HumanMessage("Weather?")
called = bound.invoke([question])
assert called.tool_calls[0]["args"] == {"city": "Oslo", "days": 2}
told = ToolMessage(
    get_weather.invoke(called.tool_calls[0]["args"]), tool_call_id=called.tool_calls[0]["id"]
)
assert bound.invoke([question, called, told]).content == ("The tool said: sunny in Oslo for 2 days")
forced = model.bind_tools([get_weather], tool_choice="get_weather").invoke([question])
assert forced.tool_calls[0]["args"] == {"city": "Oslo", "days": 2}
for method in ("json_schema", "function_calling"):
    found = model.with_structured_output(Weather, method=method).invoke("Weather?")
    assert found == Weather(city="Oslo", degrees=-4, sky="clear"), method
responses = ChatOpenAI(model=MODEL, use_responses_api=True)
assert responses.invoke("Hello").text == "You said: Hello"
print(f"langchain-openai {version('langchain-openai')}")
