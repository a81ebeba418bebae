from __future__ import annotations

import pickle
from typing import Any

import pytest

from piecework_protocol.objects import Parameters, Voucher
from piecework_protocol.types import address_hex, parse_address, parse_hex
from tests.vectors.generate import DOMAIN, _objects


@pytest.mark.parametrize(
    ("change", "defect"),
    [
        ({"cumulative": 2**128}, "uint128"),
        ({"cumulative": -1}, "uint128"),
        ({"count": 2**64}, "uint64"),
        ({"channel": bytes(31)}, "32 bytes"),
        ({"receipts_root": bytes(33)}, "32 bytes"),
    ],
)
def test_a_member_out_of_its_bounds_is_refused_by_name(change: dict[str, Any], defect: str) -> None:
    voucher = next(o for o in _objects() if isinstance(o, Voucher))
    with pytest.raises(ValueError, match=defect) as caught:
        voucher.replace(**change)
    assert str(caught.value).startswith("Voucher.")


def test_any_changed_member_changes_the_digest() -> None:
    base = next(o for o in _objects() if isinstance(o, Voucher))
    changed = [
        base.replace(cumulative=base.cumulative + 1),
        base.replace(count=base.count + 1),
        base.replace(channel=bytes(32)),
        base.replace(receipts_root=bytes(32)),
    ]
    digests = {DOMAIN.digest(m) for m in [base, *changed]}
    assert len(digests) == len(changed) + 1


def test_a_struct_of_another_class_is_refused() -> None:
    job = next(o for o in _objects() if type(o).__name__ == "Job")
    with pytest.raises(ValueError, match="Parameters"):
        job.replace(parameters="anything")
    assert isinstance(job.parameters, Parameters)  # type: ignore[attr-defined]


def test_an_address_reads_back_from_its_checksum_form() -> None:
    text = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"  # an example of EIP-55
    assert address_hex(parse_address(text)) == text


def test_a_mistyped_address_is_caught_by_its_checksum() -> None:
    with pytest.raises(ValueError, match="checksum"):
        parse_address("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD")


@pytest.mark.parametrize("text", ["", "0x", "zz" * 20, "0x" + "0" * 39, "0x" + "0" * 41])
def test_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_hex(text, 20, "address")


def test_a_kept_hash_never_follows_into_a_changed_copy() -> None:
    base = next(o for o in _objects() if isinstance(o, Voucher))
    before = base.struct_hash()
    changed = base.replace(cumulative=base.cumulative + 1)
    assert changed.struct_hash() != before == base.struct_hash()
    assert pickle.loads(pickle.dumps(base)).struct_hash() == before  # noqa: S301  our own bytes
    assert changed.replace(cumulative=base.cumulative) == base
