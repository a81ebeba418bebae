"""The diffusion engine: DiffusionGemma, one denoising step at a time, reproducible from the seed.

Plain values and typed events go in and out. No tensor, socket or chain crosses the edge of this
package.

Importing the package imports no torch. `requests`, `errors`, `limits` and `checkpoint.manifest`
stay free of it. `checkpoint.loading`, `engine` and `layers` need it. See docs/model.md.
"""
