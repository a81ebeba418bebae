// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

/// @title Inclusion proofs of the receipts accumulator and of the step trace
/// @notice The tree of RFC 9162 section 2.1 with keccak-256 in place of SHA-256. Leaves and nodes have different
/// prefixes, and a proof fixes the *position* of its leaf: with sorted pairs anybody could prove a leaf at a
/// step that never was.
library MerkleProof {
    function hashLeaf(bytes32 leaf) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(bytes1(0x00), leaf));
    }

    function hashNode(bytes32 left, bytes32 right) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(bytes1(0x01), left, right));
    }

    /// @notice Whether `leaf` is at `index` of the tree of `count` leaves under `root` (RFC 9162 section 2.1.3.2).
    /// @param leaf the 32 bytes of the leaf, not yet hashed
    /// @param siblings from the leaf's level upwards; must be exactly as many as (index, count) demand
    function verify(bytes32 root, bytes32 leaf, uint64 index, uint64 count, bytes32[] memory siblings)
        internal
        pure
        returns (bool)
    {
        if (index >= count || siblings.length != proofLength(index, count)) return false;
        uint64 position = index;
        uint64 last = count - 1;
        bytes32 node = hashLeaf(leaf);
        for (uint256 i = 0; i < siblings.length; ++i) {
            if (position & 1 == 1 || position == last) {
                node = hashNode(siblings[i], node);
                while (position & 1 == 0 && position != 0) {
                    position >>= 1;
                    last >>= 1;
                }
            } else {
                node = hashNode(node, siblings[i]);
            }
            position >>= 1;
            last >>= 1;
        }
        return last == 0 && node == root;
    }

    /// @notice How many siblings the proof of `index` in a tree of `count` leaves has; needs index < count.
    /// @dev Below the level where the paths of `index` and of the last leaf meet there is one sibling a level;
    /// above it, one for each set bit of `index` (the left siblings of the right edge).
    function proofLength(uint64 index, uint64 count) internal pure returns (uint256 length) {
        uint64 apart = index ^ (count - 1);
        uint64 edge = index;
        while (apart != 0) {
            apart >>= 1;
            edge >>= 1;
            ++length;
        }
        while (edge != 0) {
            length += edge & 1;
            edge >>= 1;
        }
    }
}
