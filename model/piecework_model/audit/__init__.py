"""Audits: was a canvas really made by this model, from this prompt and seed, in these steps?

`replay` computes the canvas again and compares bytes. It needs the worker's engine profile.
`forced` computes every step from the state that the worker shows and compares numbers. It needs the
worker's openings and works on any profile. `judgement` decides on those numbers, without torch.
"""

from __future__ import annotations
