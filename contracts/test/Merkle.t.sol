// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MerkleProof} from "../src/libraries/MerkleProof.sol";
import {MerkleTree} from "./utils/MerkleTree.sol";
import {Cheats} from "./utils/Vm.sol";

contract MerkleTest is Cheats {
    function _leaves(uint256 count) private pure returns (bytes32[] memory leaves) {
        leaves = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            leaves[i] = keccak256(abi.encode("leaf", i));
        }
    }

    function test_every_leaf_of_every_small_tree_is_proved() public pure {
        for (uint256 count = 1; count <= 33; ++count) {
            bytes32[] memory leaves = _leaves(count);
            bytes32 root = MerkleTree.root(leaves);
            for (uint256 i = 0; i < count; ++i) {
                bytes32[] memory proof = MerkleTree.prove(leaves, i);
                vm.assertTrue(MerkleProof.verify(root, leaves[i], uint64(i), uint64(count), proof), "proved");
            }
        }
    }

    /// @dev A proof fixes the position: with the same siblings no other index and no other count verifies.
    function testFuzz_a_proof_is_good_for_its_position_only(uint256 count, uint256 index, uint64 other)
        public
        pure
    {
        count = bound(count, 1, 40);
        index = bound(index, 0, count - 1);
        bytes32[] memory leaves = _leaves(count);
        bytes32 root = MerkleTree.root(leaves);
        bytes32[] memory proof = MerkleTree.prove(leaves, index);
        vm.assume(other != index);
        vm.assertTrue(!MerkleProof.verify(root, leaves[index], other, uint64(count), proof), "another index");
        vm.assertTrue(
            !MerkleProof.verify(
                root, leaves[index], uint64(bound(other, count, type(uint64).max)), uint64(count), proof
            ),
            "an index past the end"
        );
    }

    function testFuzz_a_changed_proof_is_refused(uint256 count, uint256 index, uint256 where, uint8 bit)
        public
        pure
    {
        count = bound(count, 2, 40);
        index = bound(index, 0, count - 1);
        bytes32[] memory leaves = _leaves(count);
        bytes32 root = MerkleTree.root(leaves);
        bytes32[] memory proof = MerkleTree.prove(leaves, index);
        where = bound(where, 0, proof.length - 1);
        proof[where] ^= bytes32(uint256(1) << bit);
        vm.assertTrue(
            !MerkleProof.verify(root, leaves[index], uint64(index), uint64(count), proof), "changed sibling"
        );
    }

    function testFuzz_a_proof_of_another_length_is_refused(uint256 count, uint256 index, bool longer)
        public
        pure
    {
        count = bound(count, 2, 40);
        index = bound(index, 0, count - 1);
        bytes32[] memory leaves = _leaves(count);
        bytes32 root = MerkleTree.root(leaves);
        bytes32[] memory proof = MerkleTree.prove(leaves, index);
        bytes32[] memory wrong = new bytes32[](longer ? proof.length + 1 : proof.length - 1);
        for (uint256 i = 0; i < wrong.length && i < proof.length; ++i) {
            wrong[i] = proof[i];
        }
        vm.assertTrue(
            !MerkleProof.verify(root, leaves[index], uint64(index), uint64(count), wrong), "wrong length"
        );
    }

    function test_an_inner_node_is_no_leaf() public pure {
        bytes32[] memory leaves = _leaves(4);
        bytes32 root = MerkleTree.root(leaves);
        bytes32 left = MerkleProof.hashNode(MerkleProof.hashLeaf(leaves[0]), MerkleProof.hashLeaf(leaves[1]));
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = MerkleProof.hashNode(MerkleProof.hashLeaf(leaves[2]), MerkleProof.hashLeaf(leaves[3]));
        vm.assertTrue(!MerkleProof.verify(root, left, 0, 2, proof), "inner node");
    }

    function test_nothing_is_in_the_empty_tree() public pure {
        bytes32[] memory none = new bytes32[](0);
        vm.assertTrue(!MerkleProof.verify(keccak256(""), bytes32(0), 0, 0, none), "empty");
    }
}
