"""The GPU script: its one call on a CPU, and what its figures rest on."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import DiffusionGemmaForBlockDiffusion

from bench import gpu, gpu_contexts, gpu_measures, random_model
from bench.sections import Budget, Sections
from piecework_model import precision

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "bench.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_small_call_runs_every_section_and_prints_one_object(tmp_path: Path) -> None:
    result = call("--small", "--out", str(tmp_path / "gpu.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "gpu.json").read_text())
    sections = report["sections"]
    assert {name: section["status"] for name, section in sections.items()} == dict.fromkeys(
        [
            "bandwidth",
            "arithmetic",
            "attention",
            *(
                f"{p}_{part}"
                for p in ("bf16", "int4", "fp8")
                for part in ("weights", "steps", "prompts", "mixture", "correctness")
            ),
            "offload",
            "loading",
            "sampler",
            "products",
        ],
        "ok",
    )
    assert sections["sampler"]["refusal"] == sections["products"]["refusal"] == ""
    assert sections["sampler"]["argmax_equal"] == 1.0
    for name in ("bf16", "int4", "fp8"):
        assert sections[f"{name}_mixture"]["refusal"] == ""
        assert sections[f"{name}_steps"]["transcripts_equal"] is True
        assert sections[f"{name}_correctness"]["leaves_equal"] is True
        assert sections[f"{name}_correctness"]["logit_error_max"] == 0.0
        for count in gpu.SMALL.sequences:
            figures = sections[f"{name}_steps"][f"rows_{count}"]
            assert figures["p50_ms"] > 0 and figures["bandwidth_floor_ms"] > 0
            assert figures["least_ms"] <= figures["p50_ms"] <= figures["p90_ms"]
            assert figures["tokens_second"] == pytest.approx(count * 16 / figures["canvas_s"])
        for context in gpu.SMALL.contexts:
            figures = sections[f"{name}_prompts"][f"prompt_{context}"]
            assert figures["prefill_tokens_second"] > 0 and figures["p50_ms"] > 0
            assert figures["planned_bytes"] > figures["planned_weight_bytes"] > 0
    sizes = [sections[f"{name}_weights"]["weight_bytes"] for name in ("bf16", "fp8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    for context in gpu.SMALL.contexts:
        assert sections["attention"][f"full_chunk_{context}"]["p50_ms"] > 0
    assert sections["offload"]["resident_40%"]["host_bytes"] > 0
    assert sections["loading"]["none_hashed_4_threads"]["bytes_second"] > 0
    assert set(report) >= {"hardware", "environment", "dimensions", "targets"}


def test_without_time_every_section_says_that_it_was_left_out() -> None:
    heard: list[int] = []
    sections = Sections(Budget(0), lambda results: heard.append(len(results)))
    device = gpu_measures.GpuDevice(CPU)
    gpu.run(gpu.Bench(sections, random_model.SMALL, gpu.SMALL, device))
    assert heard == list(range(1, 23)), "each is told as it ends"
    assert {section["status"] for section in sections.results.values()} == {"skipped"}
    assert all(section["reason"] for section in sections.results.values())


def test_a_target_that_was_not_measured_says_so_beside_its_estimate() -> None:
    nothing = gpu.targets({})
    assert {row["measured"] for row in nothing.values()} == {"not measured"}
    some = gpu.targets({"fp8_steps": {"rows_1": {"tokens_second": 7.0}}})
    fp8 = some["fp8 tokens a second at 1 row, at least"]
    assert (fp8["measured"], fp8["target"]) == (7.0, 1000.0)
    assert 0 < fp8["estimate"] < fp8["target"]


def test_attention_that_needs_the_math_path_fails_its_section() -> None:
    device = gpu_measures.GpuDevice(CPU)
    odd = replace(random_model.SMALL, heads=3)  # no kernel takes three beside two key heads
    with pytest.raises(RuntimeError, match="attention needs the math path: "):
        gpu_contexts.attention(device, odd, (64,), 1)


def test_without_a_gpu_and_without_small_it_says_so() -> None:
    result = call()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: no CUDA device; --small runs on a CPU\n"


def test_the_released_dimensions_give_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = DiffusionGemmaForBlockDiffusion(random_model.config(random_model.RELEASED))
    counted = sum(
        p.numel() for name, p in model.named_parameters() if not precision.is_vision(name)
    )
    assert counted == pytest.approx(25.2e9, rel=0.003)
    kinds = model.config.text_config.layer_types
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11, 17, 23, 29]
    assert model.model.decoder.layers[5].self_attn.v_proj is None


@pytest.mark.parametrize("quantization", ["none", "fp8", "int4"])
def test_a_random_model_has_memory_for_everything_once_and_ties_its_halves(
    quantization: precision.Quantization,
) -> None:
    made = random_model.build(random_model.SMALL, CPU, quantization)
    tensors = [*made.model.named_parameters(), *made.model.named_buffers()]
    assert [name for name, tensor in tensors if tensor.is_meta] == []
    decoder, encoder = made.model.model.decoder, made.model.model.encoder.language_model
    assert decoder.layers[0].experts is encoder.layers[0].experts or (
        decoder.layers[0].experts.down_proj is encoder.layers[0].experts.down_proj
    )
    assert made.model.lm_head.weight is decoder.embed_tokens.weight
    assert made.step_bytes == made.weight_bytes + 5000 * 64 * 2


def test_a_floor_counts_every_weight_once_and_the_embedding_twice() -> None:
    made = random_model.build(random_model.SMALL, CPU, "none")
    decoder = made.model.model.decoder
    once = sum(p.nbytes for p in decoder.parameters()) + sum(b.nbytes for b in decoder.buffers())
    assert made.step_bytes == once + decoder.embed_tokens.weight.nbytes


def test_a_number_of_sequences_that_would_overdraw_the_budget_is_left_out_and_named() -> None:
    made = random_model.build(random_model.SMALL, CPU, "none")
    figures = gpu_measures.steps_figures(
        made,
        gpu_measures.GpuDevice(CPU),
        Budget(0),
        gpu_measures.Rates(None, None),
        sequences=(1, 2),
        steps=2,
    )
    assert figures["rows_1"]["p50_ms"] > 0
    assert figures["rows_2"]["skipped"].startswith("needs up to ")
    assert figures["transcripts_equal"] is None
    assert "bandwidth_floor_ms" not in figures["rows_1"]


def test_a_measured_model_is_let_go() -> None:
    """On a GPU the next one has no room beside it."""
    made = random_model.build(random_model.SMALL, CPU, "none")
    watched = weakref.ref(made.model)
    device = gpu_measures.GpuDevice(CPU)
    gpu_measures.steps_figures(
        made, device, Budget(60), gpu_measures.Rates(None, None), sequences=(1,), steps=2
    )
    gpu_measures.correctness(made, device)
    del made
    gc.collect()
    assert watched() is None
