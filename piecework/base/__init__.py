"""The floor under every package: errors, settings, files, HTTP, rates, text, amounts, time.

Nothing here knows the domain. It imports the standard library, pydantic and (in `http`) aiohttp.
"""
