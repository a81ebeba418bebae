"""Prices that `piecework worker join` suggests, as the settings of a new home."""

from __future__ import annotations

import pytest

from piecework.base.amounts import Token
from piecework.commands._worker.join import suggested_prices
from piecework_node.operations.joining import PriceSuggestion


@pytest.mark.parametrize("decimals", [0, 6, 18])
def test_suggested_prices_are_read_back_from_the_settings(decimals: int) -> None:
    token = Token(bytes(20), "tUSDC", decimals)
    found = PriceSuggestion(0, 1, 1_234_567 * 10**decimals, "why")
    written = suggested_prices(token, found)
    assert [token.parse_with_unit(text) for text in written.values()] == [0, 1, found.steps]
