// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MerkleProof} from "../../src/libraries/MerkleProof.sol";

/// @notice The slow, recursive definition of RFC 9162 section 2.1: what MerkleProof.verify is held equal to.
library MerkleTree {
    function root(bytes32[] memory leaves) internal pure returns (bytes32) {
        return leaves.length == 0 ? keccak256("") : _root(leaves, 0, leaves.length);
    }

    function prove(bytes32[] memory leaves, uint256 index) internal pure returns (bytes32[] memory) {
        return _prove(leaves, index, 0, leaves.length);
    }

    function _root(bytes32[] memory leaves, uint256 from, uint256 to) private pure returns (bytes32) {
        if (to - from == 1) return MerkleProof.hashLeaf(leaves[from]);
        uint256 middle = from + _split(to - from);
        return MerkleProof.hashNode(_root(leaves, from, middle), _root(leaves, middle, to));
    }

    /// @dev Siblings from the leaf upwards.
    function _prove(bytes32[] memory leaves, uint256 index, uint256 from, uint256 to)
        private
        pure
        returns (bytes32[] memory proof)
    {
        if (to - from == 1) return new bytes32[](0);
        uint256 middle = from + _split(to - from);
        bool left = index < middle;
        bytes32[] memory below =
            left ? _prove(leaves, index, from, middle) : _prove(leaves, index, middle, to);
        proof = new bytes32[](below.length + 1);
        for (uint256 i = 0; i < below.length; ++i) {
            proof[i] = below[i];
        }
        proof[below.length] = left ? _root(leaves, middle, to) : _root(leaves, from, middle);
    }

    /// @dev The largest power of two below `count`.
    function _split(uint256 count) private pure returns (uint256 power) {
        power = 1;
        while (power * 2 < count) power *= 2;
    }
}
