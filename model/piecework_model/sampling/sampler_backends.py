"""Which sampler runs on a device: the fused one if it runs and agrees, else the pure one.

The fused sampler is tried on fixed random logits first (backend_trial.py). The choice changes the
last bits of a result, so its name belongs to the engine profile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from piecework_model import backend_trial, limits
from piecework_model.sampling import sampler
from piecework_model.sampling.sampler import SampleOutput

SampleFn = Callable[[Tensor, Tensor, float, Tensor], SampleOutput]
"""As `sampler.sample`. It may overwrite the logits."""

FUSED: Final = "fused"
_FLOAT32_BYTES: Final = 4
_TRIED_POSITIONS: Final = 8
_SPREAD: Final = 4.0
"""Standard deviation of the tried logits. Some thousand tokens then share the mass, and a wrong sum
shows.
"""
_CAP: Final = 30.0
_TOLERANCE_NATS: Final = 1e-3
"""Float32 sums over a vocabulary differ by 1e-5. A wrong sum differs by far more."""
_SEED: Final = 20261125


@dataclass(frozen=True, slots=True)
class SamplerBackend:
    """A sampler and its name in the engine profile. reason: why it is not the fused one, or
    empty.
    """

    name: str
    sample: SampleFn
    reason: str

    def sequences_at_once(self, values: int, element_bytes: int) -> int:
        """Count the sequences whose logits, `values` each, may exist at the same time.

        The pure sampler makes LOGIT_COPIES arrays of float32 from them. The fused one needs no
        other memory than the logits themselves, so more sequences share one pass over the
        vocabulary's weights. The bits of a position depend on neither.
        """
        at_once = max(1, limits.LOGIT_TILE_VALUES // values)
        if self.name != FUSED:
            return at_once
        return at_once * limits.LOGIT_COPIES * _FLOAT32_BYTES // element_bytes


def sampler_for(device: torch.device, dtype: torch.dtype, vocab_size: int) -> SamplerBackend:
    """Choose the sampler for logits of this type and vocabulary."""
    if device.type != "cuda":
        return SamplerBackend("pure", sampler.sample, f"no kernels for {device.type}")
    try:
        from piecework_model.sampling import sampler_triton
    except ImportError as error:
        return SamplerBackend("pure", sampler.sample, f"no Triton: {error}")
    reason = why_rejected(sampler_triton.sample, device, dtype, vocab_size)
    return (
        SamplerBackend("pure", sampler.sample, reason)
        if reason
        else SamplerBackend(FUSED, sampler_triton.sample, "")
    )


def why_rejected(
    sample: SampleFn, device: torch.device, dtype: torch.dtype, vocab_size: int
) -> str:
    """Say why a sampler may not take the place of the pure one, or return an empty string."""
    generator = torch.Generator().manual_seed(_SEED)
    raw = _SPREAD * torch.randn((_TRIED_POSITIONS, vocab_size), generator=generator)
    raw = raw.to(device, dtype)
    temperatures = torch.linspace(0.4, 0.8, _TRIED_POSITIONS).to(device)
    uniforms = torch.rand(_TRIED_POSITIONS, generator=generator, dtype=torch.float64).to(device)

    def run(rows: slice) -> backend_trial.Outputs:
        copies = [part[rows].clone() for part in (raw, temperatures, uniforms)]
        return _named(sample(copies[0], copies[1], _CAP, copies[2]))

    return backend_trial.why_rejected(
        run,
        lambda: _named(sampler.sample(raw, temperatures, _CAP, uniforms)),
        rows=_TRIED_POSITIONS,
        batches={1: _TRIED_POSITIONS},
        compare=_compare,
    )


def _compare(actual: backend_trial.Outputs, expected: backend_trial.Outputs) -> str:
    for name in ("argmax", "sampled"):
        if not torch.equal(actual[name], expected[name]):
            return f"its {name} is another"
    for name in ("entropy", "log_probability", "gap"):
        difference = float((actual[name] - expected[name]).abs().max())
        if not difference <= _TOLERANCE_NATS:
            return f"its {name} differs by {difference}"
    return ""


def _named(output: SampleOutput) -> backend_trial.Outputs:
    return {name: getattr(output, name) for name in SampleOutput.__dataclass_fields__}
