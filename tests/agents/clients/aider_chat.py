"""aider: one edit of a file, as it comes, with its temperature of 0."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

Path("hello.py").write_text('print("hello")\n')
command = [
    "aider",
    *("--model", f"openai/{os.environ['PIECEWORK_MODEL']}"),
    *("--openai-api-base", os.environ["OPENAI_BASE_URL"]),
    *("--openai-api-key", os.environ["OPENAI_API_KEY"]),
    *("--edit-format", "whole", "--message", "Greet the world in hello.py."),
    *("--no-git", "--yes-always", "--no-check-update", "--no-show-model-warnings"),
    *("--analytics-disable", "--no-pretty", "--no-show-release-notes", "hello.py"),
]
done = subprocess.run(command, capture_output=True, text=True, check=False)
assert Path("hello.py").read_text() == 'print("hello, world")\n', done.stdout + done.stderr
print(f"aider {version('aider-chat')}")
