#!/usr/bin/env python3
"""Write contracts/release/, or check (`--check`) that the sources still give exactly what it holds.

Plain Python and the pinned solc-js, no other dependency. What is frozen is the init code: the
addresses of escrow and registry follow from it. `--freeze` replaces it; without that flag a source
that gives other bytes is an error. A release is never changed after it was deployed anywhere.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RELEASE = ROOT / "release"
CONTRACTS = ("Escrow", "WorkerRegistry", "EvidenceVerifier", "Disputes")
# The deterministic deployment proxy (https://github.com/Arachnid/deterministic-deployment-proxy).
FACTORY = "0x4e59b44847b379578588920cA78FbF26c0B4956C"
SALT = bytes(32)
# A registry's address depends on its terms. These are the ones that addresses.json shows.
EXAMPLE_TERMS: dict[str, Any] = {
    "token": "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
    "min_stake": 100_000_000,
    "unbonding_seconds": 604_800,
}
# The same for a dispute contract, beside the terms of its registry.
EXAMPLE_DISPUTE_TERMS: dict[str, Any] = {
    "proving_cost": 500_000,
    "min_bond_wei": 100_000_000_000_000,
    "verdict_fee": 5_000_000,
    "committee": [],
    "threshold": 0,
}
IMPORT = re.compile(r'^import (?:\{[^}]*\} from )?"([^"]+)";', re.MULTILINE)
TYPE_STRING = re.compile(r'string internal constant \w+_TYPE\s*=\s*"([^"]+)"')
SIGNED_UNDER = {
    "Registration": "Piecework Registry",
    "Verdict": "Piecework Disputes",
}
DOMAIN = (
    ("name", "string"),
    ("version", "string"),
    ("chainId", "uint256"),
    ("verifyingContract", "address"),
)


def sources(entry: str) -> dict[str, str]:
    """The transitive imports of one source, by the name that solc sees."""
    found: dict[str, str] = {}
    queue = [entry]
    while queue:
        name = queue.pop()
        if name in found:
            continue
        path = ROOT / ("node_modules/" + name if name.startswith("@") else name)
        found[name] = path.read_text()
        for target in IMPORT.findall(found[name]):
            queue.append(_resolve(name, target))
    return dict(sorted(found.items()))


def _resolve(importer: str, target: str) -> str:
    if not target.startswith("."):
        return target
    parts = [*importer.split("/")[:-1]]
    for part in target.split("/"):
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def standard_json(name: str) -> dict[str, Any]:
    """The compiler's whole input for one contract."""
    entry = f"src/{name}.sol"
    return {
        "language": "Solidity",
        "sources": {path: {"content": text} for path, text in sources(entry).items()},
        "settings": {
            "optimizer": {"enabled": True, "runs": 10_000},
            "viaIR": True,
            "evmVersion": "cancun",
            "metadata": {"bytecodeHash": "none", "appendCBOR": False},
            "outputSelection": {entry: {name: ["abi", "evm.bytecode.object", "userdoc", "devdoc"]}},
        },
    }


def compile_input(name: str, source: dict[str, Any]) -> dict[str, Any]:
    """What solc makes of a standard-JSON input; `SystemExit` when it fails."""
    ran = subprocess.run(
        [str(ROOT / "tools" / "solc"), "--standard-json"],
        input=json.dumps(source),
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(ran.stdout)
    errors = [e["formattedMessage"] for e in answer.get("errors", []) if e["severity"] == "error"]
    if errors:
        raise SystemExit("\n".join(errors))
    result: dict[str, Any] = answer["contracts"][f"src/{name}.sol"][name]
    return result


def keccak(data: bytes) -> bytes:
    """keccak-256 by the js-sha3 that solc-js brings: Python's hashlib has none."""
    script = (
        "process.stdout.write(require('js-sha3').keccak256(Buffer.from(process.argv[1],'hex')))"
    )
    ran = subprocess.run(
        ["node", "-e", script, data.hex()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return bytes.fromhex(ran.stdout)


def create2(init_code: bytes, deployer: str = FACTORY) -> str:
    """Where the factory, or another deployer, puts init code with salt 0: EIP-1014."""
    packed = b"\xff" + bytes.fromhex(deployer[2:]) + SALT + keccak(init_code)
    return "0x" + keccak(packed)[12:].hex()


def addresses(codes: dict[str, bytes]) -> dict[str, Any]:
    """The addresses that follow from the init codes."""
    token = int(str(EXAMPLE_TERMS["token"]), 16)
    stakes = (token, EXAMPLE_TERMS["min_stake"], EXAMPLE_TERMS["unbonding_seconds"])
    registry = codes["WorkerRegistry"] + words(*stakes)
    escrow = create2(codes["Escrow"])
    verifier = create2(codes["EvidenceVerifier"] + words(int(escrow, 16)))
    more = EXAMPLE_DISPUTE_TERMS
    terms = words(32, int(verifier, 16), *stakes)
    terms += words(more["proving_cost"], more["min_bond_wei"], more["verdict_fee"])
    terms += words(9 * 32, more["threshold"], len(more["committee"]))
    disputes = create2(codes["Disputes"] + terms)
    return {
        "factory": FACTORY,
        "salt": "0x" + SALT.hex(),
        "escrow": {
            "initCodeHash": "0x" + keccak(codes["Escrow"]).hex(),
            "address": escrow,
        },
        "registry": {
            "initCodeHashWithoutArguments": "0x" + keccak(codes["WorkerRegistry"]).hex(),
            "example": {
                "terms": EXAMPLE_TERMS,
                "address": create2(registry),
            },
        },
        "verifier": {
            "initCodeHashWithoutArguments": "0x" + keccak(codes["EvidenceVerifier"]).hex(),
            "address": verifier,
        },
        "disputes": {
            "initCodeHashWithoutArguments": "0x" + keccak(codes["Disputes"]).hex(),
            "example": {
                "terms": EXAMPLE_TERMS | EXAMPLE_DISPUTE_TERMS,
                "address": disputes,
                "registry": create2(registry, disputes),
            },
        },
    }


def words(*values: int) -> bytes:
    """Numbers as the ABI encodes them."""
    return b"".join(int(value).to_bytes(32, "big") for value in values)


def typed_data() -> dict[str, Any]:
    """Every signed struct in the form of eth_signTypedData_v4, from the type strings in src/."""
    types: dict[str, list[dict[str, str]]] = {}
    for path in sorted((ROOT / "src" / "libraries").glob("*.sol")):
        for text in TYPE_STRING.findall(path.read_text()):
            name, members = text.rstrip(")").split("(")
            pairs = [member.split(" ") for member in members.split(",")]
            types[name] = [{"name": member, "type": kind} for kind, member in pairs]
    plain = {kind.removesuffix("[]") for t in types.values() for kind in (m["type"] for m in t)}
    primary = [name for name in types if name not in plain or name == "Channel"]
    domain = [{"name": name, "type": kind} for name, kind in DOMAIN]
    return {
        name: {
            "domain": {"name": SIGNED_UNDER.get(name, "Piecework"), "version": "2"},
            "primaryType": name,
            "types": {"EIP712Domain": domain, **_needed(name, types)},
        }
        for name in sorted(primary)
    }


def _needed(name: str, types: dict[str, list[dict[str, str]]]) -> dict[str, list[dict[str, str]]]:
    found = {name: types[name]}
    for member in types[name]:
        inner = member["type"].removesuffix("[]")
        if inner in types:
            found |= _needed(inner, types)
    return found


def render(value: Any) -> str:
    """Stable text."""
    return json.dumps(value, indent=1, sort_keys=False) + "\n"


def expected() -> dict[str, str]:
    """All files of the release, by name, as the sources give them."""
    files: dict[str, str] = {}
    codes: dict[str, bytes] = {}
    for name in CONTRACTS:
        source = standard_json(name)
        built = compile_input(name, source)
        codes[name] = bytes.fromhex(built["evm"]["bytecode"]["object"])
        files[f"{name}.initcode.hex"] = "0x" + codes[name].hex() + "\n"
        files[f"{name}.input.json"] = render(source)
        files[f"{name}.abi.json"] = render(built["abi"])
        files[f"{name}.natspec.json"] = render({"user": built["userdoc"], "dev": built["devdoc"]})
    files["addresses.json"] = render(addresses(codes))
    files["typed-data.json"] = render(typed_data())
    return files


def forge_agrees(files: dict[str, str]) -> list[str]:
    """Contracts whose forge build, which the tests deploy, is not the released code."""
    wrong = []
    for name in CONTRACTS:
        built = ROOT / "out" / f"{name}.sol" / f"{name}.json"
        code = json.loads(built.read_text())["bytecode"]["object"] if built.is_file() else ""
        if code + "\n" != files[f"{name}.initcode.hex"]:
            wrong.append(name)
    return wrong


def main() -> int:
    """Write or check; 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail on a difference")
    parser.add_argument("--freeze", action="store_true", help="replace the frozen init code")
    options = parser.parse_args()
    files = expected()
    stale = [
        name
        for name, text in files.items()
        if not (RELEASE / name).is_file() or (RELEASE / name).read_text() != text
    ]
    frozen = [n for n in stale if n.endswith(".initcode.hex") and (RELEASE / n).is_file()]
    if options.check or (frozen and not options.freeze):
        for name in stale:
            print(f"release/{name} is not what the sources give", file=sys.stderr)
        for name in forge_agrees(files):
            print(f"forge's build of {name} is not the released init code", file=sys.stderr)
            stale.append(name)
        if frozen:
            print("the init code is frozen; --freeze makes a new release", file=sys.stderr)
        return 1 if stale else 0
    RELEASE.mkdir(exist_ok=True)
    for name in stale:
        (RELEASE / name).write_text(files[name])
        print(f"wrote release/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
