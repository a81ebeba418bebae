"""What each precision costs in quality: `python -m bench.precision [--json]`.

Every step of recorded float32 runs is decided again by the same checkpoint in another precision
(`bench/agreement.py`), on the bundled checkpoint and on the mid-size one with random weights. The
bundled one also tells stories, which are held to what was asked for. Arithmetic is in bfloat16, as
on a GPU.

The last six lines say what packing one kind of tensor otherwise would change: the policy of
`model/piecework_model/precision.py` rests on them.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from bench.agreement import ComparedCanvas, Observer, Tally
from bench.checkpoints import write_mid
from bench.report import environment
from piecework_model.bounds import ModelLimits
from piecework_model.checkpoint import headers
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.checkpoint.weights import Placement, load_weights
from piecework_model.layers.packed_kernels import Fp8ScaledMm
from piecework_model.layers.quantization import Fp8, Int4, Recipe
from piecework_model.precision import Quantization
from piecework_model.requests import GenerationRequest
from piecework_model.training import asking, grammar, measures, skills
from piecework_protocol.kinds.text import TextContent

Unpacks = Fp8 | Int4
CPU: Final = torch.device("cpu")
SEED: Final = 7
MID_PROMPTS: Final = (8, 60, 130, 200)
"""Tokens: within the window of 128, around it and beyond."""
MID_STEPS: Final = 12
MID_CANVASES: Final = 2

_LAYER: Final = r"model\.decoder\.layers\.\d+\."
EXPERTS: Final = _LAYER + r"experts\.(gate_up|down)_proj"
LINEARS: Final = _LAYER + r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
CONDITIONING: Final = r"model\.decoder\.self_conditioning\.(gate|up|down)_proj\.weight"
ROUTER: Final = _LAYER + r"router\.proj\.weight"
EMBEDDING: Final = r"model\.decoder\.embed_tokens\.weight"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to keep a checkpoint's weights: packed by `recipe`, as the engine packs them; or, for
    what the policy does not do, packed and unpacked again in place, each pattern of names by its
    codec.
    """

    name: str
    recipe: Recipe | None = None
    in_place: tuple[tuple[str, Unpacks], ...] = ()

    def load(self, folder: Path) -> DiffusionGemmaForBlockDiffusion:
        """The checkpoint of a folder, kept so."""
        config = DiffusionGemmaConfig.from_pretrained(folder, local_files_only=True)
        placement = Placement(torch.bfloat16, CPU, self.recipe)
        model = load_weights(folder, headers.read_folder(folder), config, placement)
        for pattern, codec in self.in_place:
            _pack_in_place(model, codec, pattern)
        return model


POLICY: Final = ((EXPERTS, Int4()), (LINEARS, Fp8()), (CONDITIONING, Fp8()))
VARIANTS: Final = (
    Variant("bfloat16"),
    Variant("fp8", Recipe(Fp8(), Fp8())),
    Variant("fp8-scaled-mm", Recipe(Fp8ScaledMm(), Fp8ScaledMm())),
    Variant("int4-g32+fp8", Recipe(Fp8(), Int4(32))),
    Variant("int4-g64+fp8", Recipe(Fp8(), Int4(64))),
    Variant("int4-g128+fp8", Recipe(Fp8(), Int4(128))),
    Variant("int4-g64 experts, the rest bfloat16", None, POLICY[:1]),
    Variant(
        "int4-g64 experts and linears", None, ((EXPERTS, Int4()), (LINEARS, Int4()), POLICY[2])
    ),
    Variant("int4-g64+fp8, self-conditioning int4", None, (*POLICY[:2], (CONDITIONING, Int4()))),
    Variant("int4-g64+fp8, self-conditioning plain", None, POLICY[:2]),
    Variant("int4-g64+fp8, router fp8", None, (*POLICY, (ROUTER, Fp8()))),
    Variant("int4-g64+fp8, embedding fp8", None, (*POLICY, (EMBEDDING, Fp8()))),
)
STORY_PRECISIONS: Final[tuple[Quantization, ...]] = ("none", "fp8", "int4")


def _pack_in_place(model: DiffusionGemmaForBlockDiffusion, codec: Unpacks, pattern: str) -> None:
    """Replaces weights by what their packed form stands for. Tied names are one tensor, changed
    once."""
    for name, weight in model.state_dict().items():
        if re.fullmatch(pattern, name):
            for matrix in weight if weight.dim() == 3 else [weight]:
                matrix.copy_(codec.unpack(codec.pack(matrix), matrix.dtype))


def agreement(folder: Path, requests: Sequence[GenerationRequest]) -> dict[str, dict[str, float]]:
    """The figures of each variant over all steps of these requests."""
    loaded = load(folder, device="cpu", dtype="float32")
    recorder = Observer(loaded.model, loaded.limits)
    recorded: list[list[ComparedCanvas]] = [recorder.record(request) for request in requests]
    return {
        variant.name: compared(variant.load(folder), loaded.limits, recorded).figures()
        for variant in VARIANTS
    }


def compared(
    model: DiffusionGemmaForBlockDiffusion,
    limits: ModelLimits,
    recorded: Sequence[list[ComparedCanvas]],
) -> Tally:
    """All recorded runs, decided again by `model`."""
    tally, observer = Tally(), Observer(model, limits)
    for canvases in recorded:
        observer.compare(canvases, tally)
    return tally


def tiny_requests(loaded: LoadedModel, count: int) -> list[GenerationRequest]:
    """What the bundled model was trained to answer: two canvases each."""
    rng = random.Random(SEED)  # noqa: S311  measurement data, no secret
    contents = [_asked(grammar.example(rng)) for _ in range(count)]
    length = 2 * loaded.limits.canvas_size
    return [
        asking.request(
            loaded,
            content,
            asking.PUBLISHED,
            request_id=f"story-{seed}",
            seed=seed,
            max_tokens=length,
        )
        for seed, content in enumerate(contents)
    ]


def _asked(example: grammar.Example) -> TextContent:
    return TextContent(skills.user(example.prompt))


def mid_requests(limits: ModelLimits) -> list[GenerationRequest]:
    """Random ids; what the model says of them means nothing, how it is computed is what matters."""
    generator = torch.Generator().manual_seed(SEED)
    return [
        GenerationRequest(
            request_id=f"mid-{length}",
            prompt_ids=tuple(
                torch.randint(limits.vocab_size, (length,), generator=generator).tolist()
            ),
            seed=length,
            max_tokens=MID_CANVASES * limits.canvas_size,
            max_steps=MID_STEPS,
            temperature_start=0.8,
            temperature_end=0.4,
            entropy_bound=10.0,  # nats: positions have about 3 each, so a step accepts a few
            confidence_threshold=0.005,
            stability_steps=1,
            canvas_limit=MID_CANVASES,
        )
        for length in MID_PROMPTS
    ]


def stories(count: int) -> dict[str, dict[str, float]]:
    """What the bundled model still does in each precision: shares of requested nouns, of characters
    in sentences that its grammar could have written, of stories that end; denoising steps a canvas.
    """
    rng, asked = random.Random(SEED), list[grammar.Example]()  # noqa: S311  measurement data, no secret
    while len(asked) < count:
        example = grammar.example(rng)
        if example.nouns:
            asked.append(example)
    found: dict[str, dict[str, float]] = {}
    for quantization in STORY_PRECISIONS:
        loaded = load(device="cpu", dtype="bfloat16", quantization=quantization)
        told = asking.ask(loaded, [_asked(example) for example in asked], asking.PUBLISHED)
        texts = [story.text for story in told]
        nouns = [
            hit
            for example, text in zip(asked, texts, strict=True)
            for hit in measures.followed(text, example.nouns)
        ]
        found["bfloat16" if quantization == "none" else loaded.quantization] = {
            "nouns_followed": sum(nouns) / len(nouns),
            "well_formed": measures.well_formed_share(texts),
            "ended": sum(story.ended for story in told) / len(told),
            "steps_per_canvas": statistics.mean(steps for story in told for steps in story.steps),
        }
    return found


def measure(checkpoints: Sequence[str], requests: int, told: int) -> dict[str, Any]:
    """All figures that were asked for."""
    figures: dict[str, Any] = {}
    if "tiny" in checkpoints:
        folder = bundled_checkpoint_path()
        wanted = tiny_requests(load(folder, device="cpu", dtype="float32"), requests)
        figures["tiny"] = agreement(folder, wanted)
        figures["stories"] = stories(told)
    if "mid" in checkpoints:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "mid"
            write_mid(folder)
            limits = load(folder, device="cpu", dtype="float32").limits
            figures["mid"] = agreement(folder, mid_requests(limits))
    return figures


def _print(figures: dict[str, Any], line: Callable[[str], None]) -> None:
    for checkpoint in ("tiny", "mid"):
        if checkpoint in figures:
            line(
                f"{checkpoint:36}{'steps':>7}{'argmax':>9}{'accepted':>10}{'exact':>8}{'entropy':>9}"
            )
            for name, of in figures[checkpoint].items():
                line(
                    f"{name:36}{of['steps']:>7.0f}{of['argmax_equal']:>9.2%}{of['accepted_equal']:>10.2%}"
                    f"{of['exact_steps']:>8.1%}{of['entropy_difference']:>9.4f}"
                )
    if "stories" in figures:
        line(f"{'stories':36}{'nouns':>7}{'well-formed':>13}{'ended':>8}{'steps a canvas':>16}")
        for name, of in figures["stories"].items():
            line(
                f"{name:36}{of['nouns_followed']:>7.1%}{of['well_formed']:>13.1%}{of['ended']:>8.0%}"
                f"{of['steps_per_canvas']:>16.1f}"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--checkpoint", choices=("tiny", "mid", "both"), default="both")
    parser.add_argument(
        "--requests", type=int, default=16, help="of the bundled model, two canvases each"
    )
    parser.add_argument("--stories", type=int, default=48)
    wanted = parser.parse_args()
    torch.set_num_threads(
        1
    )  # two wait for each other on matrices this small, and figures are not times
    chosen = ("tiny", "mid") if wanted.checkpoint == "both" else (wanted.checkpoint,)
    where = environment("torch", "transformers")
    figures = measure(chosen, wanted.requests, wanted.stories)
    if wanted.json:
        print(json.dumps({"environment": where, **figures}))
        return
    for key, value in where.items():
        print(f"{key:>14}  {value}")
    _print(figures, print)


if __name__ == "__main__":
    main()
