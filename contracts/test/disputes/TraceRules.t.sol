// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {
    Fault,
    IEvidenceVerifier,
    JobOfChannel,
    SignedReceipt
} from "../../src/interfaces/IEvidenceVerifier.sol";
import {Philox} from "../../src/libraries/Philox.sol";
import {Receipt} from "../../src/libraries/PieceworkTypes.sol";
import {OpenedLeaf, TraceLeaves} from "../../src/libraries/TraceLeaves.sol";
import {Pin, TraceProof, TraceRule, TraceRules} from "../../src/libraries/TraceRules.sol";
import {MerkleTree} from "../utils/MerkleTree.sol";
import {DisputesBase} from "./DisputesBase.sol";
import {Trace, TraceBuilder} from "./TraceBuilder.sol";

/// @notice Each test takes an honest trace, spoils one thing, and shows it by exactly one rule. The honest trace is shown
/// to break none.
contract TraceRulesTest is DisputesBase {
    uint32 private constant STEPS = 3;
    /// @dev Positions 0, 2 and 3 are pinned.
    uint256 private constant PINS = 13;

    JobOfChannel private _subject;
    Trace private _trace;
    uint8 private _finish;

    function setUp() public override {
        super.setUp();
        _start(0, 1, PINS);
    }

    function _start(uint8 kind, uint8 finish, uint256 pins) private {
        _finish = finish;
        _subject = newJob(kind);
        _keep(TraceBuilder.honest(_subject.job, 0, kind == 0 ? STEPS : 1, pins));
    }

    function _keep(Trace memory trace) private {
        delete _trace;
        for (uint256 i = 0; i < trace.fields.length; ++i) {
            _trace.fields.push();
            for (uint256 j = 0; j < trace.fields[i].length; ++j) {
                _trace.fields[i].push(trace.fields[i][j]);
            }
        }
        for (uint256 i = 0; i < trace.pins.length; ++i) {
            _trace.pins.push(trace.pins[i]);
        }
        _trace.output = trace.output;
    }

    /// @dev Changes one byte of a field.
    function _spoil(uint256 leaf, uint256 field, uint256 place) private {
        bytes memory data = _trace.fields[leaf][field];
        data[place] = bytes1(uint8(data[place]) ^ 1);
        _trace.fields[leaf][field] = data;
    }

    function _proof(TraceRule rule, uint32 position, uint256[2] memory indices, uint256[2] memory bits)
        private
        view
        returns (TraceProof memory proof)
    {
        bool single = rule == TraceRule.CanvasLeaf || rule == TraceRule.Output;
        proof.rule = rule;
        proof.position = position;
        proof.leaves = new OpenedLeaf[](single ? 1 : 2);
        for (uint256 i = 0; i < proof.leaves.length; ++i) {
            proof.leaves[i] = TraceBuilder.open(_trace, uint64(indices[i]), bits[i]);
        }
        proof.pinCount = uint64(_trace.pins.length);
        proof.output = TraceBuilder.outputBytes(_trace.output);
    }

    function _pins(TraceProof memory proof, uint256 first, uint256 count) private view {
        proof.pins = new Pin[](count);
        for (uint256 i = 0; i < count; ++i) {
            proof.pins[i] = _trace.pins[first + i];
        }
    }

    function _call(TraceProof memory proof) private view returns (bytes memory) {
        SignedReceipt memory signed = signReceipt(receiptOf(_subject, _trace, _finish));
        return traceProof(_subject, signed, proof);
    }

    function _expectHonest(TraceProof memory proof) private {
        _expectRefused(proof, IEvidenceVerifier.NotBroken.selector);
    }

    function _expectRefused(TraceProof memory proof, bytes4 reason) private {
        bytes memory call = _call(proof);
        vm.expectPartialRevert(reason);
        disputes.prove(call);
    }

    function _expectBroken(TraceProof memory proof) private {
        bytes memory call = _call(proof);
        uint256 id = vm.snapshotState();
        disputes.prove(call);
        vm.assertEq(stakeOf(operator), 0, "stake");
        vm.revertToState(id);
    }

    // ------------------------------------------------------------------ the canvas leaf

    function _canvas(uint256 bits) private view returns (TraceProof memory) {
        return _proof(TraceRule.CanvasLeaf, 0, [uint256(0), 0], [bits, 0]);
    }

    function test_a_canvas_leaf_is_the_jobs() public {
        _expectHonest(_canvas(0x3f));
        _expectHonest(_canvas(0));
        // Tag, canvas, kind; seed; parameters; content.
        uint256[2][6] memory places = [
            [uint256(0), 3],
            [uint256(0), 18],
            [uint256(0), 30],
            [uint256(1), 7],
            [uint256(2), 0],
            [uint256(3), 31]
        ];
        for (uint256 i = 0; i < 6; ++i) {
            _spoil(0, places[i][0], places[i][1]);
            _expectBroken(_canvas(1 << places[i][0]));
            // A closed field shows nothing.
            _expectHonest(_canvas(0x3f ^ (1 << places[i][0])));
            _spoil(0, places[i][0], places[i][1]);
        }
    }

    function test_a_canvas_leaf_has_its_form() public {
        bytes memory header = _trace.fields[0][0];
        _trace.fields[0][0] = bytes.concat("piecework/canvas/1", bytes12(0), bytes1(_subject.job.kind));
        _expectBroken(_canvas(1));
        _trace.fields[0][0] = header;
        for (uint256 field = 0; field < 6; ++field) {
            bytes memory right = _trace.fields[0][field];
            _trace.fields[0][field] = bytes.concat(right, hex"00");
            _expectBroken(_canvas(1 << field));
            _trace.fields[0][field] = "";
            _expectBroken(_canvas(0));
            _trace.fields[0][field] = right;
        }
    }

    function test_a_canvas_has_a_size_and_a_vocabulary_and_1024_positions_at_most() public {
        uint32[2][4] memory numbers =
            [[uint32(1024), 1], [uint32(1025), 1], [uint32(0), 1], [uint32(1024), 0]];
        for (uint256 i = 0; i < 4; ++i) {
            _trace.fields[0][0] = bytes.concat(
                "piecework/canvas/1",
                bytes4(0),
                TraceBuilder.little(numbers[i][0]),
                TraceBuilder.little(numbers[i][1]),
                bytes1(_subject.job.kind)
            );
            if (i == 0) _expectHonest(_canvas(1));
            else _expectBroken(_canvas(1));
        }
    }

    /// @dev The fields of a step are none of a canvas leaf, and the other way around. An honest worker would lose its
    /// stake otherwise.
    function test_a_leaf_of_another_kind_shows_nothing() public {
        TraceProof memory proof = _proof(TraceRule.CanvasLeaf, 0, [uint256(1), 0], [uint256(0x7f), 0]);
        _expectRefused(proof, TraceRules.WrongLeaves.selector);
        _expectRefused(_step(0, 0x3f), TraceRules.WrongLeaves.selector);
    }

    // ------------------------------------------------------------------ a step leaf

    function _step(uint256 index, uint256 bits) private view returns (TraceProof memory) {
        return _proof(TraceRule.StepLeaf, 0, [uint256(0), index], [uint256(1), bits]);
    }

    function test_a_step_leaf_has_its_place_and_form() public {
        _expectHonest(_step(2, 0x7f));
        uint256[4] memory places = [uint256(0), 16, 20, 24];
        for (uint256 i = 0; i < 4; ++i) {
            _spoil(2, 0, places[i]);
            _expectBroken(_step(2, 1));
            _spoil(2, 0, places[i]);
        }
        for (uint256 field = 0; field < 7; ++field) {
            bytes memory right = _trace.fields[2][field];
            _trace.fields[2][field] = bytes.concat(right, hex"00");
            _expectBroken(_step(2, 1 << field));
            _trace.fields[2][field] = "";
            _expectBroken(_step(2, 0));
            _trace.fields[2][field] = right;
        }
    }

    function test_a_step_accepts_positions_of_its_canvas_alone() public {
        bytes memory bitmap = _trace.fields[1][4];
        bitmap[1] |= 0x08;
        _trace.fields[1][4] = bitmap;
        _expectBroken(_step(1, 1 << 4));
    }

    function test_a_soft_embedding_is_of_a_known_type() public {
        bytes memory soft = _trace.fields[1][5];
        soft[0] = 0x04;
        _trace.fields[1][5] = soft;
        _expectBroken(_step(1, 1 << 5));
        soft[0] = 0x00;
        _trace.fields[1][5] = soft;
        _expectBroken(_step(1, 1 << 5));
        soft[0] = 0x03;
        _trace.fields[1][5] = soft;
        _expectHonest(_step(1, 1 << 5));
    }

    // ------------------------------------------------------------------ continuity

    function _follow(uint256 first, uint256 second) private view returns (TraceProof memory) {
        return _proof(TraceRule.Continuity, 0, [first, second], [uint256(0), 0]);
    }

    function test_steps_follow_each_other() public {
        _expectHonest(_follow(1, 2));
        _expectHonest(_follow(2, 3));
        _expectRefused(_follow(1, 3), TraceRules.WrongLeaves.selector);
        _expectRefused(_follow(0, 1), TraceRules.WrongLeaves.selector);
        _spoil(2, 1, 4);
        _expectBroken(_follow(1, 2));
    }

    // ------------------------------------------------------------------ Philox

    function _initial(uint32 position) private view returns (TraceProof memory proof) {
        proof = _proof(TraceRule.InitialCanvas, position, [uint256(0), 1], [uint256(17), 2]);
    }

    function test_the_first_canvas_is_noise_where_nothing_is_pinned() public {
        // Between two pins, behind the last one.
        TraceProof memory proof = _initial(1);
        _pins(proof, 0, 2);
        _expectHonest(proof);
        proof = _initial(7);
        _pins(proof, 2, 1);
        _expectHonest(proof);
        _spoil(1, 1, 4);
        _spoil(1, 1, 28);
        proof = _initial(1);
        _pins(proof, 0, 2);
        _expectBroken(proof);
        proof = _initial(7);
        _pins(proof, 2, 1);
        _expectBroken(proof);
    }

    function test_a_position_before_the_first_pin_is_not_pinned() public {
        _start(0, 1, 12);
        _spoil(1, 1, 0);
        TraceProof memory proof = _initial(0);
        _pins(proof, 0, 1);
        _expectBroken(proof);
    }

    function test_a_canvas_without_pins_has_no_pinned_position() public {
        _start(0, 1, 0);
        _expectHonest(_initial(0));
        _spoil(1, 1, 0);
        _expectBroken(_initial(0));
    }

    /// @dev Position 2 is pinned. No choice of pins, counts or indices says that it is not.
    /// forge-config: deep.fuzz.runs = 100000
    function testFuzz_a_pinned_position_is_never_shown_free(
        uint256 first,
        uint256 count,
        uint64 pinCount,
        uint64 indexShift
    ) public {
        TraceProof memory proof = _initial(2);
        first = bound(first, 0, 2);
        _pins(proof, first, bound(count, 0, 3 - first));
        proof.pinCount = uint64(bound(pinCount, 0, 6));
        for (uint256 i = 0; i < proof.pins.length; ++i) {
            proof.pins[i].index = uint64(bound(proof.pins[i].index + bound(indexShift, 0, 4), 0, 6));
        }
        _expectRefused(proof, TraceRules.WrongPins.selector);
    }

    /// @dev Positions 0, 2 and 3 are pinned: the first, one between others, and the last.
    function test_a_pinned_position_is_not_before_between_or_behind_pins() public {
        uint32[3][4] memory cases =
            [[uint32(2), 0, 2], [uint32(2), 1, 2], [uint32(0), 0, 1], [uint32(3), 2, 1]];
        for (uint256 i = 0; i < 4; ++i) {
            TraceProof memory proof = _initial(cases[i][0]);
            _pins(proof, cases[i][1], cases[i][2]);
            _expectRefused(proof, TraceRules.WrongPins.selector);
        }
    }

    function test_a_canvas_without_pins_is_shown_with_none() public {
        TraceProof memory proof = _initial(0);
        _pins(proof, 0, 1);
        Pin[] memory pins = proof.pins;
        _start(0, 1, 0);
        _spoil(1, 1, 0);
        proof = _initial(0);
        proof.pins = pins;
        _expectRefused(proof, TraceRules.WrongPins.selector);
    }

    function test_the_initial_canvas_is_that_of_step_0() public {
        TraceProof memory proof = _proof(TraceRule.InitialCanvas, 1, [uint256(0), 2], [uint256(17), 2]);
        _pins(proof, 0, 2);
        _expectRefused(proof, TraceRules.WrongLeaves.selector);
    }

    function _renoise(uint256 leaf, uint32 position) private view returns (TraceProof memory) {
        return _proof(TraceRule.Renoise, position, [uint256(0), leaf], [uint256(1), 20]);
    }

    function test_what_is_not_accepted_is_noise() public {
        bytes memory bitmap = _trace.fields[2][4];
        uint256 free = 0;
        for (uint32 p = 0; p < TraceBuilder.SIZE; ++p) {
            _expectHonest(_renoise(2, p));
            bool accepted = (uint8(bitmap[p / 8]) >> (p % 8)) & 1 == 1;
            _spoil(2, 2, 4 * p);
            if (accepted) {
                _expectHonest(_renoise(2, p));
            } else {
                _expectBroken(_renoise(2, p));
                ++free;
            }
            _spoil(2, 2, 4 * p);
        }
        vm.assertTrue(free > 0, "some position is free");
        _expectRefused(_renoise(2, TraceBuilder.SIZE), TraceRules.WrongLeaves.selector);
    }

    // ------------------------------------------------------------------ pins

    function _pin(uint256 leaf, uint256 bits) private view returns (TraceProof memory proof) {
        proof = _proof(TraceRule.Pinned, 2, [uint256(0), leaf], [uint256(17), bits]);
        _pins(proof, 1, 1);
    }

    function test_a_pinned_position_keeps_its_token() public {
        for (uint256 leaf = 1; leaf <= STEPS; ++leaf) {
            _expectHonest(_pin(leaf, 0x1e));
            for (uint256 field = 1; field <= 3; ++field) {
                _spoil(leaf, field, 8);
                _expectBroken(_pin(leaf, 1 << field));
                _spoil(leaf, field, 8);
            }
            bytes memory bitmap = _trace.fields[leaf][4];
            bitmap[0] &= 0xfb;
            _trace.fields[leaf][4] = bitmap;
            _expectBroken(_pin(leaf, 1 << 4));
            bitmap[0] |= 0x04;
            _trace.fields[leaf][4] = bitmap;
        }
    }

    function test_a_pin_that_is_none_shows_nothing() public {
        TraceProof memory proof = _pin(1, 0x1e);
        ++proof.pins[0].token;
        _expectRefused(proof, TraceRules.WrongPins.selector);
        proof = _pin(1, 0x1e);
        proof.position = 1;
        _expectRefused(proof, TraceRules.WrongPins.selector);
        proof = _pin(1, 0x1e);
        proof.pins = new Pin[](0);
        _expectRefused(proof, TraceRules.WrongPins.selector);
    }

    // ------------------------------------------------------------------ output

    function _output() private view returns (TraceProof memory) {
        return _proof(TraceRule.Output, 0, [uint256(STEPS), 0], [uint256(8), 0]);
    }

    function test_the_output_is_the_last_argmax_canvas() public {
        _expectHonest(_output());
        // What ends earlier or leaves tokens out is still in its order.
        delete _trace.output[2];
        (_trace.output[2], _trace.output) = (_trace.output[3], _without(_trace.output, 2));
        _expectHonest(_output());
        _trace.output = new uint32[](0);
        _expectHonest(_output());
        _trace.output.push(TraceBuilder.VOCABULARY);
        _expectBroken(_output());
    }

    function _without(uint32[] memory ids, uint256 place) private pure returns (uint32[] memory rest) {
        rest = new uint32[](ids.length - 1);
        for (uint256 i = 0; i < rest.length; ++i) {
            rest[i] = ids[i < place ? i : i + 1];
        }
    }

    function test_tokens_in_another_order_or_twice_are_no_output() public {
        uint32[] memory ids = _trace.output;
        (ids[0], ids[5]) = (ids[5], ids[0]);
        _trace.output = ids;
        _expectBroken(_output());
        (ids[0], ids[5]) = (ids[5], ids[5]);
        _trace.output = ids;
        _expectBroken(_output());
    }

    function test_one_token_of_the_canvas_is_not_two_of_the_output() public {
        uint32[] memory ids = _trace.output;
        for (uint256 i = 1; i < ids.length; ++i) {
            vm.assertTrue(ids[i] != ids[0], "it stands once");
        }
        _trace.output = new uint32[](0);
        _trace.output.push(ids[0]);
        _expectHonest(_output());
        _trace.output.push(ids[0]);
        _expectBroken(_output());
    }

    function test_an_output_without_text_is_one() public {
        TraceProof memory proof = _output();
        bytes memory short = new bytes(proof.output.length - 4);
        for (uint256 i = 0; i < short.length; ++i) {
            short[i] = proof.output[i];
        }
        proof.output = short;
        Receipt memory receipt = receiptOf(_subject, _trace, _finish);
        receipt.outputDigest = keccak256(abi.encodePacked(receipt.job, uint32(0), short));
        bytes memory call = traceProof(_subject, signReceipt(receipt), proof);
        vm.expectPartialRevert(IEvidenceVerifier.NotBroken.selector);
        disputes.prove(call);
    }

    function test_other_bytes_than_the_signed_output_show_nothing() public {
        TraceProof memory proof = _output();
        proof.output = bytes.concat(proof.output, hex"00");
        _expectRefused(proof, TraceRules.NotTheOutput.selector);
        proof = _output();
        proof.leaves[0] = TraceBuilder.open(_trace, 2, 8);
        _expectRefused(proof, TraceRules.WrongLeaves.selector);
    }

    function test_an_output_that_cannot_be_read_is_none() public {
        bytes[3] memory broken = [bytes(hex"0000"), hex"00000401", hex"0000000200000001"];
        for (uint256 i = 0; i < 3; ++i) {
            TraceProof memory proof = _output();
            proof.output = broken[i];
            Receipt memory receipt = receiptOf(_subject, _trace, _finish);
            receipt.outputDigest = keccak256(abi.encodePacked(receipt.job, uint32(0), broken[i]));
            bytes memory call = traceProof(_subject, signReceipt(receipt), proof);
            uint256 id = vm.snapshotState();
            disputes.prove(call);
            vm.revertToState(id);
        }
    }

    // ------------------------------------------------------------------ which rule applies

    function test_stop_and_output_rules_end_with_a_cancel_and_continuity_with_a_read() public {
        _start(0, 3, 0);
        _expectRefused(_output(), TraceRules.RuleDoesNotApply.selector);
        _expectHonest(_follow(1, 2));
        _start(1, 1, 0);
        _expectRefused(
            _proof(TraceRule.Continuity, 0, [uint256(0), 1], [uint256(0), 0]),
            TraceRules.RuleDoesNotApply.selector
        );
        _expectRefused(
            _proof(TraceRule.Output, 0, [uint256(1), 0], [uint256(8), 0]),
            TraceRules.RuleDoesNotApply.selector
        );
        _expectHonest(_initial(0));
        for (uint8 kind = 2; kind < 5; ++kind) {
            _start(kind, 1, 0);
            _expectRefused(_canvas(1), TraceRules.RuleDoesNotApply.selector);
        }
    }

    // ------------------------------------------------------------------ leaves

    function test_a_changed_opening_shows_nothing() public {
        TraceProof memory proof = _step(2, 0x7f);
        proof.leaves[1].fields[1][0] ^= 0x01;
        _expectRefused(proof, TraceLeaves.WrongField.selector);
        proof = _step(2, 0x7f);
        proof.leaves[1].digests[6] = keccak256("other");
        proof.leaves[1].fields[6] = "";
        _expectRefused(proof, TraceLeaves.NotInTrace.selector);
        proof = _step(2, 0x7f);
        proof.leaves[1].index = 1;
        _expectRefused(proof, TraceLeaves.NotInTrace.selector);
        proof = _step(2, 0x7f);
        proof.leaves[1].digests = new bytes32[](6);
        _expectRefused(proof, TraceLeaves.WrongFieldCount.selector);
        proof = _step(2, 0x7f);
        proof.leaves = new OpenedLeaf[](1);
        _expectRefused(proof, TraceRules.WrongLeaves.selector);
    }

    function test_a_rule_needs_its_fields_open() public {
        TraceProof memory proof = _proof(TraceRule.Renoise, 0, [uint256(0), 1], [uint256(1), 4]);
        _expectRefused(proof, TraceLeaves.FieldClosed.selector);
        proof = _proof(TraceRule.Renoise, 0, [uint256(1), 0], [uint256(1), 4]);
        _expectRefused(proof, TraceRules.WrongLeaves.selector);
    }

    // ------------------------------------------------------------------ vectors

    function test_every_leaf_and_root_is_the_one_that_python_computed() public {
        string memory json = vm.readFile("../tests/vectors/trace.json");
        LeafReader reader = new LeafReader();
        uint256 cases = 0;
        for (;; ++cases) {
            string memory place = string.concat(".cases[", vm.toString(cases), "]");
            if (!vm.keyExistsJson(json, place)) break;
            bytes32[] memory leaves = vm.parseJsonBytes32Array(json, string.concat(place, ".leaves"));
            bytes32 root = vm.parseJsonBytes32(json, string.concat(place, ".root"));
            for (uint256 i = 0; i < leaves.length; ++i) {
                reader.check(_vector(json, place, i, leaves), root, uint64(leaves.length));
            }
        }
        vm.assertTrue(cases > 2, "cases");
    }

    function _vector(string memory json, string memory place, uint256 index, bytes32[] memory leaves)
        private
        pure
        returns (OpenedLeaf memory leaf)
    {
        leaf.index = uint64(index);
        leaf.fields = new bytes[](index == 0 ? 6 : 7);
        string memory list = index == 0
            ? string.concat(place, ".canvasFields[")
            : string.concat(place, ".stepFields[", vm.toString(index - 1), "][");
        for (uint256 i = 0; i < leaf.fields.length; ++i) {
            leaf.fields[i] = vm.parseJsonBytes(json, string.concat(list, vm.toString(i), "].data"));
        }
        leaf.digests = TraceBuilder.digests(leaf.fields);
        leaf.siblings = MerkleTree.prove(leaves, index);
    }

    function test_every_draw_is_the_one_that_python_computed() public view {
        string memory json = vm.readFile("../tests/vectors/disputes.json");
        uint256 count = 0;
        for (;; ++count) {
            string memory draw = string.concat(".draws[", vm.toString(count), "]");
            if (!vm.keyExistsJson(json, draw)) break;
            uint256 word = Philox.draw(
                uint64(vm.parseJsonUint(json, string.concat(draw, ".seed"))),
                uint32(vm.parseJsonUint(json, string.concat(draw, ".canvas"))),
                uint32(vm.parseJsonUint(json, string.concat(draw, ".step"))),
                uint32(vm.parseJsonUint(json, string.concat(draw, ".position"))),
                uint32(vm.parseJsonUint(json, string.concat(draw, ".purpose")))
            );
            vm.assertEq(word, vm.parseJsonUint(json, string.concat(draw, ".word")), draw);
            uint32 vocabulary = uint32(vm.parseJsonUint(json, string.concat(draw, ".vocabulary")));
            uint256 token_ = vm.parseJsonUint(json, string.concat(draw, ".token"));
            vm.assertEq(Philox.token(word, vocabulary), token_, draw);
        }
        vm.assertTrue(count > 10, "draws");
    }

    function test_the_table_of_rules_is_pythons() public view {
        string memory json = vm.readFile("../tests/vectors/disputes.json");
        for (uint8 rule = 0; rule <= uint8(type(TraceRule).max); ++rule) {
            for (uint8 kind = 0; kind < 5; ++kind) {
                for (uint8 finish = 0; finish < 4; ++finish) {
                    string memory key = string.concat(
                        ".applies[",
                        vm.toString(rule),
                        "][",
                        vm.toString(kind),
                        "][",
                        vm.toString(finish),
                        "]"
                    );
                    bool expected = vm.parseJsonBool(json, key);
                    vm.assertTrue(TraceRules.applies(TraceRule(rule), kind, finish) == expected, key);
                }
            }
        }
    }
}

/// @notice Reads leaves from calldata.
contract LeafReader {
    function check(OpenedLeaf calldata leaf, bytes32 root, uint64 count) external pure {
        TraceLeaves.requireIn(leaf, root, count);
    }
}
