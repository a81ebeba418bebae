"""The command `llm`, with the model named in its list of OpenAI-compatible models."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

MODEL = os.environ["PIECEWORK_MODEL"]
home = Path.cwd() / "llm"
home.mkdir()
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: pw\n  model_name: {MODEL}\n  api_base: {os.environ['OPENAI_BASE_URL']}\n"
    "  api_key_name: pw\n  supports_schema: true\n"
)
environment = {**os.environ, "LLM_USER_PATH": str(home)}


def llm(*arguments: str) -> str:
    """Run the command."""
    command = ["llm", "-m", "pw", "--key", os.environ["OPENAI_API_KEY"], *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


assert llm("Hello") == "You said: Hello"
assert llm("--no-stream", "Hello") == "You said: Hello"
assert llm("--schema", "name, age int", "Who?") in (
    '{"name": "Ann", "age": 7}',
    '{"name":"Ann","age":7}',
)
print(f"llm {version('llm')}")
