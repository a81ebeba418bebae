"""LiteLLM: a chat, a stream, tools, a schema, text completion, the Responses API."""

from __future__ import annotations

import json
import os
from importlib.metadata import version

import litellm
from pydantic import BaseModel

MODEL = f"openai/{os.environ['PIECEWORK_MODEL']}"
BASE = os.environ["OPENAI_BASE_URL"]
HELLO = [{"role": "user", "content": "Hello"}]


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


answer = litellm.completion(model=MODEL, messages=HELLO, api_base=BASE, temperature=0)
assert answer.choices[0].message.content == "You said: Hello"
stream = litellm.completion(model=MODEL, messages=HELLO, api_base=BASE, stream=True)
text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
assert text == "You said: Hello"
parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
called = litellm.completion(model=MODEL, messages=HELLO, api_base=BASE, tools=[tool])
call = called.choices[0].message.tool_calls[0]
assert json.loads(call.function.arguments) == {"city": "Oslo"}
person = litellm.completion(model=MODEL, messages=HELLO, api_base=BASE, response_format=Person)
assert Person.model_validate_json(person.choices[0].message.content) == Person(name="Ann", age=7)
response = litellm.responses(model=MODEL, input="Hello", api_base=BASE)
assert response.output[0].content[0].text == "You said: Hello"
print(f"litellm {version('litellm')}")
