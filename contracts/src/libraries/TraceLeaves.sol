// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

import {MerkleProof} from "./MerkleProof.sol";

/// @notice A leaf of a trace, with some of its fields opened.
/// @param index 0 for the canvas leaf, k + 1 for that of step k
/// @param digests SHA-256 of each field, in the order of the layout
/// @param fields the bytes of the opened fields, empty where a field stays closed
/// @param siblings proof of the leaf under the trace root
struct OpenedLeaf {
    uint64 index;
    bytes32[] digests;
    bytes[] fields;
    bytes32[] siblings;
}

/// @title The leaves of a trace, layout 2 (clause 7.1 of docs/protocol.md)
/// @notice A canvas with n steps has n + 1 leaves: the canvas leaf, then one for each step. A leaf is the root of a
/// tree over the SHA-256 of its fields. All integers are little-endian.
library TraceLeaves {
    // Fields of the canvas leaf.
    uint256 internal constant CANVAS_HEADER = 0;
    uint256 internal constant SEED = 1;
    uint256 internal constant PARAMETERS = 2;
    uint256 internal constant CONTENT = 3;
    uint256 internal constant PINNED = 4;
    uint256 internal constant PROMPT_TOKENS = 5;
    uint256 internal constant CANVAS_FIELDS = 6;
    // Fields of a step leaf.
    uint256 internal constant STEP_HEADER = 0;
    uint256 internal constant BEFORE = 1;
    uint256 internal constant AFTER = 2;
    uint256 internal constant ARGMAX = 3;
    uint256 internal constant ACCEPTED = 4;
    uint256 internal constant SOFT = 5;
    uint256 internal constant FINGERPRINT = 6;
    uint256 internal constant STEP_FIELDS = 7;

    bytes18 internal constant CANVAS_TAG = "piecework/canvas/1";
    bytes16 internal constant STEP_TAG = "piecework/step/2";
    uint256 internal constant CANVAS_HEADER_BYTES = 31;
    uint256 internal constant STEP_HEADER_BYTES = 28;

    error WrongFieldCount(uint256 digests, uint256 fields, uint256 expected);
    error WrongField(uint256 field);
    error NotInTrace(uint64 index);
    error FieldClosed(uint256 field);
    error FieldTooShort(uint256 length, uint256 needed);

    /// @notice How many fields the leaf at `index` has.
    function fieldCount(uint64 index) internal pure returns (uint256) {
        return index == 0 ? CANVAS_FIELDS : STEP_FIELDS;
    }

    /// @notice Reverts unless the opened fields are those of the leaf, and the leaf is at its index under `root`.
    /// @param count leaves of the trace: steps + 1
    function requireIn(OpenedLeaf calldata leaf, bytes32 root, uint64 count) internal pure {
        uint256 fields = fieldCount(leaf.index);
        if (leaf.digests.length != fields || leaf.fields.length != fields) {
            revert WrongFieldCount(leaf.digests.length, leaf.fields.length, fields);
        }
        for (uint256 i = 0; i < fields; ++i) {
            bytes calldata field = leaf.fields[i];
            if (field.length > 0 && sha256(field) != leaf.digests[i]) revert WrongField(i);
        }
        if (!MerkleProof.verify(root, _root(leaf.digests), leaf.index, count, leaf.siblings)) {
            revert NotInTrace(leaf.index);
        }
    }

    /// @notice The bytes of an opened field; reverts for a closed one.
    function opened(OpenedLeaf calldata leaf, uint256 field) internal pure returns (bytes calldata data) {
        data = leaf.fields[field];
        if (data.length == 0) revert FieldClosed(field);
    }

    /// @notice The uint32 at byte `offset`, little-endian.
    function uint32At(bytes calldata data, uint256 offset) internal pure returns (uint32) {
        if (data.length < offset + 4) revert FieldTooShort(data.length, offset + 4);
        uint32 big = uint32(bytes4(data[offset:offset + 4]));
        return (big >> 24) | ((big >> 8) & 0xff00) | ((big << 8) & 0xff0000) | (big << 24);
    }

    /// @notice The uint64 in `data`, which has 8 bytes, little-endian.
    function uint64Of(bytes calldata data) internal pure returns (uint64) {
        return uint64(uint32At(data, 0)) | (uint64(uint32At(data, 4)) << 32);
    }

    /// @notice Bit `position` of a bitmap, from the lowest bit of each byte.
    function bitAt(bytes calldata data, uint256 position) internal pure returns (bool) {
        if (data.length <= position / 8) revert FieldTooShort(data.length, position / 8 + 1);
        return (uint8(data[position / 8]) >> (position % 8)) & 1 == 1;
    }

    /// @dev Of six or seven leaves.
    function _root(bytes32[] calldata d) private pure returns (bytes32) {
        bytes32 left = MerkleProof.hashNode(_pair(d[0], d[1]), _pair(d[2], d[3]));
        bytes32 right = _pair(d[4], d[5]);
        if (d.length == STEP_FIELDS) right = MerkleProof.hashNode(right, MerkleProof.hashLeaf(d[6]));
        return MerkleProof.hashNode(left, right);
    }

    function _pair(bytes32 left, bytes32 right) private pure returns (bytes32) {
        return MerkleProof.hashNode(MerkleProof.hashLeaf(left), MerkleProof.hashLeaf(right));
    }
}
