from __future__ import annotations

import itertools

import pytest

from piecework_protocol.errors import GrpcStatus, InvariantBroken, Reason, Refusal, invariant


def test_reasons_with_one_status_and_one_answer_are_still_two() -> None:
    meanings = {(r.status, r.retryable) for r in Reason}
    assert len(meanings) < len(Reason) == len(Reason.__members__)
    for one, other in itertools.combinations(Reason.__members__.values(), 2):
        assert one is not other and one != other


def test_a_reason_is_found_by_its_name_and_an_unknown_one_is_internal() -> None:
    for name, reason in Reason.__members__.items():
        assert Reason.named(name) is reason
    assert Reason.named("OF_A_LATER_VERSION") is Reason.INTERNAL


def test_only_what_can_pass_by_itself_is_worth_a_second_try() -> None:
    assert Reason.BUSY.retryable and Reason.BUSY.status is GrpcStatus.RESOURCE_EXHAUSTED
    assert not Reason.BAD_SIGNATURE.retryable


def test_a_refusal_says_its_reason_first() -> None:
    refusal = Refusal(Reason.EXPIRED, "the deadline is over", metadata={"deadline": "5"})
    assert str(refusal) == "EXPIRED: the deadline is over"
    assert refusal.metadata == {"deadline": "5"}


def test_a_broken_invariant_stops() -> None:
    invariant(True, "holds")
    with pytest.raises(InvariantBroken, match="does not hold"):
        invariant(False, "does not hold")
