from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework_protocol import merkle
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_PROOF_SIBLINGS
from piecework_protocol.types import Bytes32, keccak256

leaves = st.lists(st.binary(min_size=32, max_size=32), max_size=70)


def recursive_root(items: list[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, word for word: the oracle for the incremental form."""
    if not items:
        return keccak256(b"")
    if len(items) == 1:
        return merkle.leaf_hash(items[0])
    split = 1 << ((len(items) - 1).bit_length() - 1)
    return merkle.node_hash(recursive_root(items[:split]), recursive_root(items[split:]))


@given(leaves)
def test_the_incremental_root_is_the_recursive_one(items: list[bytes]) -> None:
    assert merkle.root(items) == recursive_root(items)


@given(leaves.filter(bool), st.data())
def test_every_leaf_proves_into_the_root(items: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(items) - 1))
    proof = merkle.prove(items, index)
    assert merkle.verify(proof, items[index], merkle.root(items))


distinct = st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=40, unique=True)


@given(distinct, st.data())
def test_a_proof_holds_for_no_other_position_leaf_or_length(
    items: list[bytes], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(items) - 1))
    proof, root = merkle.prove(items, index), merkle.root(items)
    for other in set(range(len(items))) - {index}:
        assert not merkle.verify(
            merkle.InclusionProof(other, len(items), proof.siblings), items[index], root
        )
    forged = bytes([items[index][0] ^ 1]) + items[index][1:]
    assert not merkle.verify(proof, forged, root)
    shortened = merkle.InclusionProof(index, len(items), proof.siblings[:-1])
    assert not merkle.verify(shortened, items[index], root)
    lengthened = merkle.InclusionProof(index, len(items), (*proof.siblings, root))  # type: ignore[arg-type]
    assert not merkle.verify(lengthened, items[index], root)


def test_a_proof_whose_index_is_not_below_its_count_cannot_be_made() -> None:
    with pytest.raises(MalformedInput):
        merkle.InclusionProof(3, 3, ())


def test_an_accumulator_with_too_few_peaks_cannot_be_made() -> None:
    with pytest.raises(MalformedInput):
        merkle.Accumulator(3, (keccak256(b"one"),))


def test_every_place_of_every_small_tree_proves_and_its_neighbours_do_not() -> None:
    """Trees of up to 70 leaves: every shape of the right edge that six levels can have."""
    leaves = [bytes([n]) * 32 for n in range(70)]
    for count in range(1, len(leaves) + 1):
        root = merkle.root(leaves[:count])
        for index in {*range(max(0, count - 6), count), 0, count // 2}:
            proof = merkle.prove(leaves[:count], index)
            assert merkle.verify(proof, leaves[index], root), (index, count)
            assert not merkle.verify(proof, leaves[(index + 1) % 70], root), (index, count)


def test_proofs_of_all_leaves_are_those_of_each_leaf() -> None:
    leaves = [bytes([n]) * 32 for n in range(40)]
    for count in range(40):
        root, proofs = merkle.prove_all(leaves[:count])
        assert root == merkle.root(leaves[:count])
        assert list(proofs) == [merkle.prove(leaves[:count], index) for index in range(count)]


@pytest.mark.parametrize("index", [-1, 3])
def test_no_leaf_is_proved_at_an_index_that_is_not_there(index: int) -> None:
    with pytest.raises(MalformedInput, match=r"^no leaf at that index$"):
        merkle.prove([bytes(32)] * 3, index)


def test_a_proof_has_at_most_as_many_siblings_as_the_protocol_allows() -> None:
    most = (Bytes32(bytes(32)),) * MAX_PROOF_SIBLINGS
    assert len(merkle.InclusionProof(0, 1, most).siblings) == MAX_PROOF_SIBLINGS
    with pytest.raises(MalformedInput):
        merkle.InclusionProof(0, 1, (*most, Bytes32(bytes(32))))
