// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {
    Challenge,
    IEvidenceVerifier,
    JobOfChannel,
    SignedReceipt
} from "../../src/interfaces/IEvidenceVerifier.sol";
import {Receipt} from "../../src/libraries/PieceworkTypes.sol";
import {OpenedLeaf} from "../../src/libraries/TraceLeaves.sol";
import {TraceProof, TraceRule} from "../../src/libraries/TraceRules.sol";
import {DisputesBase} from "./DisputesBase.sol";
import {Trace, TraceBuilder} from "./TraceBuilder.sol";

/// @notice What the transactions of a dispute cost, with the fields of a released canvas: 256 tokens, 48 steps.
contract DisputesGasTest is DisputesBase {
    uint256 private constant TOKENS = 256;
    uint256 private constant STEPS = 48;
    /// @dev The bond pays for 420,000.
    uint256 private constant MOST_ANSWER = 215_000;

    function _snap(string memory name) private returns (uint256) {
        return vm.snapshotGasLastCall("disputes", name);
    }

    function _noise(uint256 length, uint256 seed) private pure returns (bytes memory data) {
        data = new bytes(length);
        for (uint256 i = 0; i < length; ++i) {
            data[i] = bytes1(uint8(uint256(keccak256(abi.encode(seed, i)))));
        }
    }

    /// @dev Ids as they are: three bytes of 262,144 at most, and a zero.
    function _ids(uint256 seed) private pure returns (bytes memory data) {
        data = _noise(4 * TOKENS, seed);
        for (uint256 i = 0; i < TOKENS; ++i) {
            (data[4 * i + 2], data[4 * i + 3]) = (data[4 * i + 2] & 0x03, 0);
        }
    }

    /// @dev Step 0 has other noise than Philox's.
    function _large(JobOfChannel memory subject) private pure returns (Trace memory trace) {
        trace.fields = new bytes[][](STEPS + 1);
        trace.fields[0] = TraceBuilder.honest(subject.job, 0, 1, 0).fields[0];
        trace.fields[0][0] = bytes.concat(
            "piecework/canvas/1", bytes4(0), TraceBuilder.little(256), TraceBuilder.little(262_144), bytes1(0)
        );
        for (uint256 i = 1; i <= STEPS; ++i) {
            bytes[] memory fields = new bytes[](7);
            fields[0] = bytes.concat(
                "piecework/step/2", bytes4(0), TraceBuilder.little(uint32(i - 1)), TraceBuilder.little(256)
            );
            for (uint256 field = 1; field < 7; ++field) {
                fields[field] = bytes.concat(bytes32(i), bytes32(field));
            }
            trace.fields[i] = fields;
        }
        bytes[] memory first = trace.fields[1];
        (first[1], first[2], first[3]) = (_ids(1), _ids(2), _ids(3));
        (first[4], first[6]) = (_noise(TOKENS / 8, 4), _noise(6 * TOKENS, 6));
        first[5] = bytes.concat(hex"02", keccak256("soft"));
    }

    function _largeJob()
        private
        returns (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed)
    {
        subject = newJob(0);
        trace = _large(subject);
        signed = signReceipt(receiptOf(subject, trace, 1));
    }

    function test_gas_of_proofs() public {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = _largeJob();
        Receipt memory other = signed.receipt;
        other.finish = 2;
        bytes memory call =
            equivocation(subject, signReceipt(receiptOf(subject, trace, 1)), signReceipt(other));
        uint256 id = vm.snapshotState();
        disputes.prove(call);
        _snap("prove: two receipts for one canvas");
        vm.revertToState(id);
        signed = signReceipt(receiptOf(subject, trace, 1));
        TraceProof memory proof;
        proof.rule = TraceRule.InitialCanvas;
        proof.position = 200;
        proof.leaves = new OpenedLeaf[](2);
        proof.leaves[0] = TraceBuilder.open(trace, 0, 17);
        proof.leaves[1] = TraceBuilder.open(trace, 1, 2);
        disputes.prove(traceProof(subject, signed, proof));
        _snap("prove: the first canvas is not Philox's");
    }

    function test_gas_of_challenges() public {
        vm.deal(operator, 1);
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = _largeJob();
        (Challenge memory asked,) = verifier.ask(payer, subject, signed, 1, ALL_STEP);
        uint256 bond = disputes.requiredBond();
        vm.prank(payer);
        disputes.challenge{value: bond}(
            abi.encodeCall(IEvidenceVerifier.ask, (payer, subject, signed, 1, ALL_STEP))
        );
        _snap("challenge");
        OpenedLeaf memory leaf = TraceBuilder.open(trace, 1, ALL_STEP);
        uint256 id = vm.snapshotState();
        disputes.answer(asked, leaf);
        uint256 used = _snap("answer: all fields of a step");
        vm.assertTrue(used < MOST_ANSWER, string.concat("an answer: ", vm.toString(used)));
        _escalateAndJudge(asked);
        vm.revertToState(id);
        later(DAY + 1);
        disputes.conclude(asked);
        _snap("conclude: a silence");
        disputes.pushCredits(payer);
        _snap("pushCredits: coins");
    }

    function test_gas_of_answering_one_field() public {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = _largeJob();
        (, Challenge memory asked) = ask(subject, signed, 1, 2);
        disputes.answer(asked, TraceBuilder.open(trace, 1, 2));
        _snap("answer: one canvas of a step");
    }

    function _escalateAndJudge(Challenge memory asked) private {
        approveEscalation();
        vm.prank(payer);
        disputes.escalate(asked);
        _snap("escalate");
        bytes32 id = disputes.challengeId(asked);
        disputes.judge(asked, true, ROOT, SOON, votes(id, true, SOON));
        _snap("judge: guilty, two members");
    }
}
