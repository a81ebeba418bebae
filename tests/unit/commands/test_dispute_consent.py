"""What `piecework client dispute` asks before it spends: amounts with their unit, and who reads."""

from __future__ import annotations

from piecework.base.amounts import Token
from piecework.client.disputes.walk import DisputeCost
from piecework.commands._client.dispute import consent_text
from piecework_protocol.types import Amount

USDC = Token(bytes(20), "USDC", 6)
BOND = 42 * 10**14


def test_a_challenge_names_its_bonds_in_the_coin_and_who_sees_the_answer() -> None:
    text = consent_text(None, DisputeCost(2, 2 * BOND), USDC)
    assert "Up to 0.0084 coin (2 bonds " in text
    assert "tokens to everybody" in text
    assert "USDC" not in text and "prompt" not in text
    assert text.endswith("Go on?")


def test_an_escalation_names_the_fees_in_the_token_and_who_reads_the_prompt() -> None:
    cost = DisputeCost(1, BOND, Amount(3_500_000), before_committee=True)
    text = consent_text(None, cost, USDC)
    assert "Up to 0.0042 coin (1 bond " in text
    assert "another bond of 3.50 USDC" in text
    assert "Its members read the prompt" in text


def test_without_another_bond_the_text_says_so() -> None:
    assert consent_text(None, DisputeCost(), USDC) == "Only gas is spent from here on. Go on?"
    assert "two receipts. Send the proof?" in consent_text("two receipts", DisputeCost(), USDC)
