// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Philox} from "../../src/libraries/Philox.sol";
import {Job, PieceworkTypes} from "../../src/libraries/PieceworkTypes.sol";
import {OpenedLeaf} from "../../src/libraries/TraceLeaves.sol";
import {Pin} from "../../src/libraries/TraceRules.sol";
import {MerkleTree} from "../utils/MerkleTree.sol";

/// @notice A canvas as a worker commits to it: every field of every leaf.
/// @param fields [leaf][field]
/// @param pins what is pinned; `siblings` prove each
struct Trace {
    bytes[][] fields;
    Pin[] pins;
    uint32[] output;
}

/// @notice Writes the trace that an honest worker signs. Sampled tokens and accepted positions are any function of the
/// seed: no exact rule knows the model.
library TraceBuilder {
    uint32 internal constant SIZE = 11;
    uint32 internal constant VOCABULARY = 997;

    /// @param pinnedBits bit p pins position p
    function honest(Job memory job, uint32 canvas, uint32 steps, uint256 pinnedBits)
        internal
        pure
        returns (Trace memory trace)
    {
        trace.pins = _pins(pinnedBits & ((1 << SIZE) - 1));
        trace.fields = new bytes[][](steps + 1);
        trace.fields[0] = _canvasFields(job, canvas, trace.pins);
        uint32[] memory before = _initial(job.parameters.seed, canvas, trace.pins);
        for (uint32 step = 0; step < steps; ++step) {
            (trace.fields[step + 1], before, trace.output) = _step(job, canvas, step, before, trace.pins);
        }
    }

    function root(Trace memory trace) internal pure returns (bytes32) {
        return MerkleTree.root(leaves(trace));
    }

    function leaves(Trace memory trace) internal pure returns (bytes32[] memory found) {
        found = new bytes32[](trace.fields.length);
        for (uint256 i = 0; i < found.length; ++i) {
            found[i] = MerkleTree.root(digests(trace.fields[i]));
        }
    }

    function digests(bytes[] memory fields) internal pure returns (bytes32[] memory found) {
        found = new bytes32[](fields.length);
        for (uint256 i = 0; i < fields.length; ++i) {
            found[i] = sha256(fields[i]);
        }
    }

    /// @param bits bit i opens field i
    function open(Trace memory trace, uint64 index, uint256 bits)
        internal
        pure
        returns (OpenedLeaf memory leaf)
    {
        bytes[] memory all = trace.fields[index];
        leaf.index = index;
        leaf.digests = digests(all);
        leaf.fields = new bytes[](all.length);
        for (uint256 i = 0; i < all.length; ++i) {
            if ((bits >> i) & 1 == 1) leaf.fields[i] = all[i];
        }
        leaf.siblings = MerkleTree.prove(leaves(trace), index);
    }

    /// @notice The canonical bytes of a text output without segments.
    function outputBytes(uint32[] memory ids) internal pure returns (bytes memory data) {
        data = abi.encodePacked(uint32(ids.length));
        for (uint256 i = 0; i < ids.length; ++i) {
            data = bytes.concat(data, bytes4(ids[i]));
        }
        data = bytes.concat(data, bytes4(0));
    }

    function little(uint32 value) internal pure returns (bytes4) {
        return bytes4((value >> 24) | ((value >> 8) & 0xff00) | ((value << 8) & 0xff0000) | (value << 24));
    }

    function idsBytes(uint32[] memory ids) internal pure returns (bytes memory data) {
        for (uint256 i = 0; i < ids.length; ++i) {
            data = bytes.concat(data, little(ids[i]));
        }
    }

    function pinAt(Pin[] memory pins, uint32 position) internal pure returns (bool pinned, uint32 token) {
        for (uint256 i = 0; i < pins.length; ++i) {
            if (pins[i].position == position) return (true, pins[i].token);
        }
    }

    function _pins(uint256 bits) private pure returns (Pin[] memory pins) {
        uint256 count = 0;
        for (uint32 p = 0; p < SIZE; ++p) {
            count += (bits >> p) & 1;
        }
        pins = new Pin[](count);
        bytes32[] memory found = new bytes32[](count);
        count = 0;
        for (uint32 p = 0; p < SIZE; ++p) {
            if ((bits >> p) & 1 == 0) continue;
            pins[count] = Pin(p, 500 + p, uint64(count), new bytes32[](0));
            found[count++] = sha256(bytes.concat(little(p), little(500 + p)));
        }
        for (uint256 i = 0; i < count; ++i) {
            pins[i].siblings = MerkleTree.prove(found, i);
        }
    }

    function _pinnedRoot(Pin[] memory pins) private pure returns (bytes32) {
        bytes32[] memory found = new bytes32[](pins.length);
        for (uint256 i = 0; i < pins.length; ++i) {
            found[i] = sha256(bytes.concat(little(pins[i].position), little(pins[i].token)));
        }
        return MerkleTree.root(found);
    }

    function _canvasFields(Job memory job, uint32 canvas, Pin[] memory pins)
        private
        pure
        returns (bytes[] memory fields)
    {
        fields = new bytes[](6);
        fields[0] = bytes.concat(
            "piecework/canvas/1", little(canvas), little(SIZE), little(VOCABULARY), bytes1(job.kind)
        );
        uint64 seed = job.parameters.seed;
        fields[1] = bytes.concat(little(uint32(seed)), little(uint32(seed >> 32)));
        fields[2] = abi.encodePacked(PieceworkTypes.hashParameters(job.parameters));
        fields[3] = abi.encodePacked(job.content);
        fields[4] = abi.encodePacked(_pinnedRoot(pins));
        fields[5] = bytes.concat(little(321));
    }

    function _initial(uint64 seed, uint32 canvas, Pin[] memory pins)
        private
        pure
        returns (uint32[] memory ids)
    {
        ids = new uint32[](SIZE);
        for (uint32 p = 0; p < SIZE; ++p) {
            (bool pinned, uint32 token) = pinAt(pins, p);
            uint256 drawn = Philox.draw(seed, canvas, 0, p, Philox.INITIAL);
            ids[p] = pinned ? token : Philox.token(drawn, VOCABULARY);
        }
    }

    function _step(Job memory job, uint32 canvas, uint32 step, uint32[] memory before, Pin[] memory pins)
        private
        pure
        returns (bytes[] memory fields, uint32[] memory afterwards, uint32[] memory argmax)
    {
        fields = new bytes[](7);
        afterwards = new uint32[](SIZE);
        argmax = new uint32[](SIZE);
        uint256 bitmap = 0;
        for (uint32 p = 0; p < SIZE; ++p) {
            (bool pinned, uint32 token) = pinAt(pins, p);
            uint256 model = uint256(keccak256(abi.encode(job.parameters.seed, canvas, step, p)));
            bool accepted = pinned || model & 1 == 1;
            argmax[p] = pinned ? token : uint32((model >> 8) % VOCABULARY);
            uint256 drawn = Philox.draw(job.parameters.seed, canvas, step, p, Philox.RENOISE);
            afterwards[p] = accepted ? argmax[p] : Philox.token(drawn, VOCABULARY);
            if (accepted) bitmap |= uint256(1) << p;
        }
        fields[0] = bytes.concat("piecework/step/2", little(canvas), little(step), little(SIZE));
        fields[1] = idsBytes(before);
        fields[2] = idsBytes(afterwards);
        fields[3] = idsBytes(argmax);
        fields[4] = abi.encodePacked(uint8(bitmap), uint8(bitmap >> 8));
        fields[5] = abi.encodePacked(uint8(1), keccak256(abi.encode(step)));
        fields[6] = new bytes(6 * SIZE);
    }
}
