"""Which implementation runs the experts of a layer: the fused one if it agrees, else the plain one.

The fused one is tried on the device first (backend_trial.py). Its name belongs to the engine
profile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from piecework_model import backend_trial
from piecework_model.backend_trial import RESULT
from piecework_model.layers.experts import MATRICES, QuantizedExperts
from piecework_model.layers.offload import HostBytes
from piecework_model.layers.packed_kernels import Fp8ScaledMm
from piecework_model.layers.quantization import Fp8, Int4

if TYPE_CHECKING:
    from piecework_model.layers.moe_triton import FusedMoe

MoeFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden [T, H], chosen [T, k] int64, weights [T, k] float32 -> weighted sum [T, H]."""

_TRIED_TOKENS: Final = (1, 3, 64, 256)
"""Batch sizes that are tried: one token, a few, the rows of a tile, a canvas."""
_ALL_TOKENS: Final = 320
_TOLERANCE: Final = 0.01
"""Largest error as a share of the largest output. Another order of sums makes one step of bfloat16,
0.4 %.
"""
_SEED: Final = 20261125


@dataclass(frozen=True, slots=True)
class MoeBackend:
    """An implementation and its name in the engine profile. reason: why it is not the fused one, or
    empty.
    """

    name: str
    run: MoeFn
    reason: str


@dataclass(frozen=True, slots=True)
class MoeTrial:
    """The size of the experts that are tried.

    tolerance: largest error as a share of the largest output.
    """

    experts: int
    hidden_size: int
    top_k: int
    device: torch.device
    dtype: torch.dtype
    tolerance: float = _TOLERANCE


def moe_for(
    experts: Any, plain: MoeFn, top_k: int, device: torch.device, dtype: torch.dtype
) -> MoeBackend:
    """Choose the implementation for one layer's module: transformers' own, or `QuantizedExperts`.

    plain: what runs otherwise, and the oracle. dtype: of the states.
    """
    if device.type != "cuda":
        return MoeBackend("plain", plain, f"no kernels for {device.type}")
    try:
        fused = fused_moe(experts)
    except (ImportError, ValueError) as error:
        return MoeBackend("plain", plain, str(error))
    tried = MoeTrial(
        experts.num_experts, fused.hidden_size, top_k, device, dtype, tolerance(experts)
    )
    reason = why_rejected(fused, plain, tried)
    return MoeBackend("plain", plain, reason) if reason else MoeBackend(name_of(fused), fused, "")


def name_of(fused: FusedMoe) -> str:
    """Name an implementation that was admitted.

    "grouped": experts come to the device in groups. The host has a part in that, so such a step
    cannot be recorded.
    """
    return "fused" if fused.source is None else "grouped"


def fused_moe(experts: Any) -> FusedMoe:
    """Build the fused implementation on the module's own weights.

    Raises:
        ValueError: The kernels cannot read these experts.
        ImportError: There is no Triton.
    """
    from piecework_model.layers.moe_triton import FusedMoe, Matrices

    if isinstance(experts, QuantizedExperts):
        if not isinstance(experts.codec, Fp8 | Fp8ScaledMm | Int4):
            raise ValueError(f"no kernels for experts packed as {experts.codec.name}")
        gate_up, down = (experts.stacked(m, experts.source.together) for m in MATRICES)
        away = experts.source if isinstance(experts.source, HostBytes) else None
        return FusedMoe(Matrices(*gate_up), Matrices(*down), away)
    plain = [Matrices(getattr(experts, matrix).detach(), None) for matrix in MATRICES]
    return FusedMoe(plain[0], plain[1])


def why_rejected(fused: MoeFn, plain: MoeFn, trial: MoeTrial) -> str:
    """Say why `fused` may not take the place of `plain`, or return an empty string."""
    generator = torch.Generator().manual_seed(_SEED)
    hidden = torch.randn((_ALL_TOKENS, trial.hidden_size), generator=generator)
    hidden = hidden.to(trial.device, trial.dtype)
    scores = torch.rand((_ALL_TOKENS, trial.experts), generator=generator)
    weights, chosen = (part.to(trial.device) for part in scores.topk(trial.top_k, dim=-1))
    return backend_trial.why_rejected(
        lambda rows: {RESULT: fused(hidden[rows], chosen[rows], weights[rows])},
        lambda: {RESULT: plain(hidden, chosen, weights)},
        rows=_ALL_TOKENS,
        batches={count: 2 * count for count in _TRIED_TOKENS},
        compare=backend_trial.within(trial.tolerance),
    )


def tolerance(experts: Any) -> float:
    """Return how far apart two right answers may be.

    The fused implementation does not round activations. Where the plain one does, the tolerance is
    that of the plain one against its own oracle.
    """
    if isinstance(experts, QuantizedExperts) and isinstance(experts.codec, Fp8ScaledMm):
        return experts.codec.tolerance
    return _TOLERANCE
