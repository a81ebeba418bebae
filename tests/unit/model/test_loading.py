"""Checkpoint folders, good and bad: each bad one is named by its defect, and the error names the
file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Literal

import pytest
import torch

from piecework_model.checkpoint import manifest
from piecework_model.checkpoint.loading import DescribedModel, LoadedModel, describe, load
from piecework_model.errors import CheckpointError, DeviceError
from piecework_model.precision import Quantization


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled checkpoint without its manifest, so that only the defect of the test
    matters."""
    copy = tmp_path / "copy"
    shutil.copytree(manifest.bundled_checkpoint_path(), copy)
    (copy / manifest.MANIFEST_FILE).unlink()
    return copy


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DEFECTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no config": ("config.json", lambda f: (f / "config.json").unlink()),
    "config is no JSON": ("config.json", lambda f: (f / "config.json").write_text("{")),
    "config is a list": ("config.json", lambda f: (f / "config.json").write_text("[]")),
    "another architecture": (
        "config.json",
        lambda f: edit_json(f / "config.json", model_type="gemma4"),
    ),
    "remote code": (
        "config.json",
        lambda f: edit_json(f / "config.json", auto_map={"AutoModel": "evil.Model"}),
    ),
    "remote tokenizer": (
        "tokenizer_config.json",
        lambda f: edit_json(f / "tokenizer_config.json", auto_map={}),
    ),
    "brings code": ("modeling.py", lambda f: (f / "modeling.py").write_text("")),
    "pre-quantized": (
        "config.json",
        lambda f: edit_json(f / "config.json", quantization_config={}),
    ),
    "no tokenizer": ("tokenizer.json", lambda f: (f / "tokenizer.json").unlink()),
    "tokenizer is another object": (
        "tokenizer.json",
        lambda f: (f / "tokenizer.json").write_text("{}"),
    ),
    "no template": ("chat_template.jinja", lambda f: (f / "chat_template.jinja").unlink()),
    "no end of text": (
        "generation_config.json",
        lambda f: edit_json(f / "generation_config.json", eos_token_id=None),
    ),
    "steps are no number": (
        "generation_config.json",
        lambda f: edit_json(f / "generation_config.json", max_denoising_steps="many"),
    ),
    "no steps": (
        "generation_config.json",
        lambda f: edit_json(f / "generation_config.json", max_denoising_steps=0),
    ),
    "more steps than a trace holds": (
        "generation_config.json",
        lambda f: edit_json(f / "generation_config.json", max_denoising_steps=257),
    ),
    "a temperature that is no number": (
        "generation_config.json",
        lambda f: edit_json(f / "generation_config.json", t_max=math.nan),
    ),
    "a temperature that falls backwards": (
        "generation_config.json",
        lambda f: edit_json(f / "generation_config.json", t_max=0.1, t_min=0.2),
    ),
    "endless stability": (
        "generation_config.json",
        lambda f: edit_json(f / "generation_config.json", stability_threshold=math.inf),
    ),
    "no weights": ("", lambda f: (f / "model.safetensors").unlink()),
    "truncated weights": (
        "model.safetensors",
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:1000]
        ),
    ),
    "weights of another size": (
        "",
        lambda f: edit_json(
            f / "config.json",
            text_config={
                **json.loads((f / "config.json").read_text())["text_config"],
                "intermediate_size": 128,
            },
        ),
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defective_checkpoint_is_refused_by_file(folder: Path, defect: str) -> None:
    name, damage = DEFECTS[defect]
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load(folder, device="cpu")
    assert caught.value.path == str(folder / name)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled") as caught:
        load(folder, device="cpu")
    assert caught.value.path == str(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"]
)
def test_one_flipped_bit_against_the_manifest_is_refused(folder: Path, name: str) -> None:
    (folder / manifest.MANIFEST_FILE).write_text(manifest.manifest_text(folder))
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError):
        load(folder, device="cpu")
    with pytest.raises(CheckpointError, match="manifest") as caught:
        manifest.verify(folder)
    assert caught.value.path == str(folder / name)


def test_a_missing_folder_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="this folder does not exist"):
        load(tmp_path / "nothing", device="cpu")


def test_an_unexpected_digest_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="expected 0000"):
        load(folder, device="cpu", expected_digest=bytes(32))


def test_a_device_that_is_not_there_is_a_device_error() -> None:
    present = torch.cuda.is_available()
    with contextlib.nullcontext() if present else pytest.raises(DeviceError):
        assert load(device="cuda").device == "cuda"


def test_the_model_digest_is_the_hash_of_the_sorted_manifest(bundled: LoadedModel) -> None:
    folder = manifest.bundled_checkpoint_path()
    names = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    ]
    assert manifest.manifest_text(folder) == "".join(lines)
    assert bundled.digest == hashlib.sha256("".join(lines).encode()).digest()


def test_files_outside_the_manifest_do_not_move_the_digest(
    folder: Path, bundled: LoadedModel
) -> None:
    (folder / "README.md").write_text("other words")
    assert load(folder, device="cpu").digest == bundled.digest


def test_weights_load_to_the_same_values_in_both_types(bundled: LoadedModel) -> None:
    narrow = load(device="cpu", dtype="bfloat16")
    assert (bundled.dtype, narrow.dtype) == ("float32", "bfloat16")
    for wide_weight, narrow_weight in zip(
        bundled.model.parameters(), narrow.model.parameters(), strict=True
    ):
        assert torch.equal(wide_weight, narrow_weight.float())


def test_the_bundled_checkpoint_is_small_and_switches_everything_on(bundled: LoadedModel) -> None:
    folder = manifest.bundled_checkpoint_path()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8 * 2**20
    text = bundled.model.config.text_config
    assert set(text.layer_types) == {"sliding_attention", "full_attention"}
    assert text.num_experts > text.top_k_experts > 1
    assert bundled.limits.canvas_size < text.sliding_window < bundled.limits.max_context


@pytest.mark.process
def test_light_modules_import_no_torch() -> None:
    program = (
        "import sys, piecework_model\n"
        "import piecework_model.requests, piecework_model.errors, piecework_model.limits\n"
        "import piecework_model.checkpoint.manifest, piecework_model.bounds\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'web3', 'grpc') if name in "
        "sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.strip() == "[]"


def test_sampling_parameters_not_given_are_those_of_transformers(
    folder: Path, bundled: LoadedModel
) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    loaded = load(folder, device="cpu")
    assert loaded.defaults == bundled.defaults
    assert loaded.eos_ids == frozenset({1})


@pytest.mark.process
def test_loading_and_prompting_touch_neither_network_nor_pickle() -> None:
    program = (
        "import sys\n"
        "from piecework_model.checkpoint.loading import load\n"
        "from piecework_model.text.chat import encode_prompt\n"
        "from piecework_protocol.conversation import Conversation, Message\n"
        "said = Conversation((Message('user', 'a fox'),))\n"
        "banned = ('socket.connect', 'socket.getaddrinfo', 'pickle.find_class')\n"
        "def refuse(event, arguments):\n"
        "    if event in banned: raise SystemExit(event)\n"
        "sys.addaudithook(refuse)\n"
        "print(len(encode_prompt(load(device='cpu'), said)) > 0)"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (result.returncode, result.stdout.strip()) == (0, "True"), result.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["none", "fp8", "int4"])
def test_what_is_described_is_what_is_loaded(
    dtype: Literal["float32", "bfloat16"], quantization: Quantization
) -> None:
    loaded = load(device="cpu", dtype=dtype, quantization=quantization)
    described = describe(device="cpu", dtype=dtype, quantization=quantization)
    for one in fields(DescribedModel):
        if one.name != "tokenizer":  # an object of its own
            assert getattr(described, one.name) == getattr(loaded, one.name), one.name
    assert loaded.dtype == str(loaded.model.dtype).removeprefix("torch.")


def test_a_folder_without_a_manifest_is_described_by_the_digest_of_its_files(
    folder: Path, bundled: LoadedModel
) -> None:
    assert describe(folder, device="cpu").digest == bundled.digest
    with (folder / "model.safetensors").open("ab") as weights:
        weights.write(b"\0")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        describe(folder, device="cpu")
