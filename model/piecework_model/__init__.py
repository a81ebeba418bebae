"""The diffusion engine: DiffusionGemma, one denoising step at a time, reproducible from the job's
seed.

Plain values and typed events go in and out; no tensor, socket or chain crosses this package's edge.
Importing it imports no torch: `model.requests`, `model.errors`, `model.trace`, `model.manifest` and
`model.limits` stay light, `model.loading`, `model.engine` and their like bring torch with them. See
docs/model.md.
"""
