"""Generate `piecework.v2` from its schema: `python -m piecework_protocol.generate`.

`--check` says which files are stale.

protoc runs from the folder that holds the package, so that the absolute imports it writes match it.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the package."""
SCHEMA = Path("piecework_protocol/v2/piecework.proto")
GENERATED = (SCHEMA.with_name("piecework_pb2.py"), SCHEMA.with_name("piecework_pb2.pyi"))


def generate(target: Path) -> None:
    """Write the generated modules below `target`.

    Raises:
        RuntimeError: protoc refuses the schema.
    """
    from grpc_tools import protoc

    include = resources.files("grpc_tools") / "_proto"
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"-I{include}",
        f"--python_out={target}",
        f"--pyi_out={target}",
    ]
    if protoc.main([*arguments, str(ROOT / SCHEMA)]) != 0:
        raise RuntimeError(f"protoc refuses {SCHEMA}")


def stale() -> list[Path]:
    """List the generated files that differ from what the schema gives."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return [f for f in GENERATED if (Path(folder) / f).read_bytes() != (ROOT / f).read_bytes()]


def main(arguments: list[str]) -> int:
    """Generate, or with `--check` say which files are stale."""
    if "--check" not in arguments:
        generate(ROOT)
        return 0
    drifted = stale()
    for file in drifted:
        print(f"{file} is stale: run python -m piecework_protocol.generate", file=sys.stderr)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
