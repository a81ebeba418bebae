"""The manifests for rented machines: parsed, held to the networks' forms and to our commands.

None of them was started. The schemas of Akash and Golem come out of their own packages (`make unit`
gets them). Render's is in no package that we know of, so what stands here is what its documents
name.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from piecework_node.config import WorkerConfig
from tests.integration.packaging.test_deploy import DRAIN_S, ROOT, parsed

DEPLOY: Final = ROOT / "deploy"
SCHEMAS: Final = ROOT / "build" / "schemas"
SDL_SHA256: Final = "93e91b83e383f5433b3724e2a95ba57a1cfa671f0102e28f8e7aa251e1fb20ca"
PAYLOAD_SHA256: Final = "7c541ed98d616e3fe4807583eee23ab35a49ba25d378fccbcd4bdf55a6e6efab"
SDL: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "akash" / "worker.yaml").read_text())
GOLEM: Final[dict[str, Any]] = json.loads((DEPLOY / "golem" / "manifest.json").read_text())
RENDER: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "render" / "render.yaml").read_text())
OF_SETTINGS: Final = "PIECEWORK_WORKER_"
OTHER_VARIABLES: Final = {"PIECEWORK_PASSWORD", "PIECEWORK_MODELS", "TRITON_CACHE_DIR"}


FORMATS: Final = jsonschema.FormatChecker(formats=())
"""Those of Golem's schema. Without this the library looks at no format."""


@FORMATS.checks("date-time", raises=ValueError)
def is_moment(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@FORMATS.checks("uri", raises=ValueError)
def is_address(value: object) -> bool:
    return not isinstance(value, str) or all(urlsplit(value)[:2])


def schema(name: str, sha256: str) -> dict[str, Any]:
    """A schema that `make unit` got out of a package."""
    text = (SCHEMAS / name).read_bytes()
    assert hashlib.sha256(text).hexdigest() == sha256, "another schema than the pinned one"
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def closed(part: Any) -> Any:
    """A schema that allows the members it names and no others, so that a typing error is seen."""
    if isinstance(part, list):
        return [closed(one) for one in part]
    if not isinstance(part, dict):
        return part
    inner = {name: closed(one) for name, one in part.items()}
    return {"additionalProperties": False, **inner} if "properties" in part else inner


def payload_faults(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest of Golem, by the schema of its command line."""
    known = closed(schema("golem-manifest.json", PAYLOAD_SHA256))
    validator = jsonschema.Draft7Validator(known, format_checker=FORMATS)
    return [error.message for error in validator.iter_errors(manifest)]


def changed(manifest: dict[str, Any], path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """A manifest with another value at one place."""
    wrong: dict[str, Any] = json.loads(json.dumps(manifest))
    inner: Any = wrong
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return wrong


def sdl_faults(sdl: dict[str, Any]) -> list[str]:
    """What is wrong with an SDL: by Akash's schema, and where its names lead nowhere."""
    validator = jsonschema.Draft7Validator(schema("akash-sdl.yaml", SDL_SHA256))
    found = [error.message for error in validator.iter_errors(sdl)]
    if found:
        return found
    profiles = sdl["profiles"]
    for name, service in sdl["services"].items():
        for placement, use in sdl["deployment"].get(name, {"": {"profile": ""}}).items():
            compute = profiles["compute"].get(use["profile"])
            if compute is None or placement not in profiles["placement"]:
                found.append(f"{name} is placed nowhere")
                continue
            if use["profile"] not in profiles["placement"][placement]["pricing"]:
                found.append(f"{use['profile']} has no price")
            volumes = {v.get("name") for v in compute["resources"]["storage"]}
            mounted = set(service.get("params", {}).get("storage", {}))
            if mounted != volumes - {None}:
                found.append(f"volumes {sorted(mounted ^ (volumes - {None}))}")
    exposed = [e for s in sdl["services"].values() for e in s.get("expose", [])]
    if not any(to.get("global") for e in exposed for to in e.get("to", [])):
        found.append("nothing is exposed, and a provider declines that")
    return found


def variables(pairs: dict[str, str]) -> None:
    """Hold environment variables to settings of the worker."""
    for name, value in pairs.items():
        if name not in OTHER_VARIABLES:
            assert name.startswith(OF_SETTINGS), name
            assert name.removeprefix(OF_SETTINGS).lower() in WorkerConfig.model_fields, name
        assert name != "PIECEWORK_PASSWORD" or not value


def joins(command: list[str]) -> None:
    """Hold a command to `worker join` through relays, without an own port, asking nothing."""
    context = parsed(command)
    assert context.info_name == "join"
    given = context.params
    assert len(given["relay"]) > 1 and not given["bind"] and not given["endpoint"]
    assert given["fingerprint"] and given["payout"] and given["rpc_url"]
    assert str(given["home"]) == "/home/piecework/worker"


def test_the_akash_manifest_is_what_the_network_takes() -> None:
    assert sdl_faults(SDL) == []
    (service,) = SDL["services"].values()
    joins(service["args"])
    variables(dict(line.split("=", 1) for line in service["env"]))
    resources = SDL["profiles"]["compute"]["worker"]["resources"]
    cards = resources["gpu"]["attributes"]["vendor"]["nvidia"]
    assert resources["gpu"]["units"] == 1 and all(card["ram"] for card in cards)
    lasting = [v for v in resources["storage"] if v.get("attributes", {}).get("persistent")]
    assert {v["name"] for v in lasting} == {"home", "models"}
    (port,) = service["expose"]
    assert f"{OF_SETTINGS}ADMIN_PORT={port['port']}" in service["env"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), "3.0"),
        (("services", "worker", "image"), ""),
        (("services", "worker", "expose"), []),
        (("deployment", "worker", "anywhere", "profile"), "unknown"),
        (("deployment", "worker", "anywhere", "count"), 0),
        (("profiles", "compute", "worker", "resources", "cpu", "units"), 0),
        (("profiles", "placement", "anywhere", "pricing"), {}),
        (("services", "worker", "params", "storage"), {}),
    ],
)
def test_a_wrong_akash_manifest_is_noticed(path: tuple[str, ...], value: object) -> None:
    assert sdl_faults(changed(SDL, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("createdAt",), "yesterday"),
        (("expiresAt",), "2036-11-29T00:00:00"),
        (("version",), 1),
        (("payloads",), []),
        (("payload",), {}),
        (("payload", 0, "urls"), ["images.example.org/worker.gvmi"]),
        (("payload", 0, "hash"), None),
        (("payload", 0, "platform", "arch"), None),
        (("metadata", "author"), "nobody"),
        (("compManifest", "script", "match"), "glob"),
        (("compManifest", "script", "command"), []),
        (("compManifest", "net", "inet", "out", "protocols"), "https"),
        (("compManifest", "net", "inet", "out", "urls"), ["https://"]),
    ],
)
def test_a_wrong_golem_manifest_is_noticed(path: tuple[str | int, ...], value: object) -> None:
    assert payload_faults(changed(GOLEM, path, value))


def test_the_golem_manifest_is_what_the_network_takes() -> None:
    assert payload_faults(GOLEM) == []
    assert set(GOLEM) == {
        "version", "createdAt", "expiresAt", "metadata", "payload", "compManifest",
    }  # fmt: skip
    made, ends = (datetime.fromisoformat(GOLEM[name]) for name in ("createdAt", "expiresAt"))
    assert made < ends
    assert set(GOLEM["metadata"]) <= {"name", "version", "authors", "homepage", "description"}
    (payload,) = GOLEM["payload"]
    assert set(payload) <= {"platform", "hash", "urls"}
    assert re.fullmatch(r"sha3:[0-9a-f]{56}", payload["hash"])
    computation = GOLEM["compManifest"]
    assert set(computation) <= {"version", "script", "net"}
    assert set(computation["script"]) == {"commands", "match"}
    (command,) = computation["script"]["commands"]
    assert command.startswith("run ") and "piecework worker join" in command
    out = computation["net"]["inet"]["out"]
    assert set(out["protocols"]) <= {"http", "https", "ws", "wss"}
    assert all(url.split("://")[0] in out["protocols"] for url in out["urls"])
    relays = {url for url in out["urls"] if url.endswith(":7443")}
    assert len(relays) > 1


def test_the_render_manifest_is_a_background_worker_with_a_disk_and_time_to_drain() -> None:
    assert set(RENDER) == {"services"}
    (service,) = RENDER["services"]
    assert (service["type"], service["runtime"]) == ("worker", "docker")
    assert "healthCheckPath" not in service and "domains" not in service
    assert (ROOT / service["dockerfilePath"]).is_file()
    joins(shlex.split(service["dockerCommand"]))
    assert DRAIN_S < service["maxShutdownDelaySeconds"] <= 300
    assert service["numInstances"] == 1 and service["disk"]["sizeGB"] > 0
    assert service["disk"]["mountPath"] == "/home/piecework/worker"
    secrets = [v["key"] for v in service["envVars"] if v.get("sync") is False]
    assert secrets == ["PIECEWORK_PASSWORD"]
    variables({v["key"]: v.get("value", "") for v in service["envVars"]})


@pytest.mark.parametrize("path", ["akash/worker.yaml", "golem/manifest.json", "render/render.yaml"])
def test_every_manifest_and_its_page_say_that_it_was_not_started(path: str) -> None:
    assert "ot started" in (DEPLOY / Path(path)).read_text()
    page = (ROOT / "docs" / "owners" / "elsewhere.md").read_text()
    assert f"deploy/{path}" in page and "None of these was started" in page
