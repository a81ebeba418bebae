// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Status} from "../../src/interfaces/IDisputes.sol";
import {IEvidenceVerifier, JobOfChannel, SignedReceipt} from "../../src/interfaces/IEvidenceVerifier.sol";
import {Verdict} from "../../src/libraries/EvidenceTypes.sol";
import {OpenedLeaf} from "../../src/libraries/TraceLeaves.sol";
import {Pin, TraceProof, TraceRule} from "../../src/libraries/TraceRules.sol";
import {ServedJobs} from "./ServedJobs.sol";
import {Trace, TraceBuilder} from "./TraceBuilder.sol";

/// @notice An honest worker serves jobs of every kind, finish and length, and answers what it is asked in time.
/// Everybody else tries every rule, and verdicts without a majority, against it. CarelessHandler has another worker.
contract DisputesHandler is ServedJobs {
    /// @notice Accusations and verdicts that must not hold, and did.
    uint256 public proved;
    /// @notice Accusations that were read to their end and showed no fault, by rule: objective ones, then TraceRule.
    uint256[6] public held;
    uint256[7] public traceHeld;
    uint256 public refusedVerdicts;
    uint256 public refusedEnds;

    /// @dev No constructor: it would hold all of this code a second time, and solc fails on so much.
    function setUp() public override {
        super.setUp();
        _serve(0, 1, 2, 5, 2, 1);
    }

    /// @dev Text, read, audit and open, with every finish. Text and open have one canvas or two.
    function serve(uint8 kind, uint8 ending, uint32 steps, uint256 pins, bool longer, bool dear) external {
        kind = uint8(bound(kind, 0, 3));
        steps = kind == 1 ? 1 : uint32(bound(steps, 1, 4));
        uint32 canvases = longer && (kind == 0 || kind == 3) ? 2 : 1;
        _serve(kind, uint8(bound(ending, 0, 3)), steps, pins, canvases, dear ? 1 : 0);
    }

    /// @dev The low half of `which` chooses a job, the high half a canvas of it.
    function _choose(uint256 which) private view returns (Served storage made, uint32 canvas) {
        made = _served[uint128(which) % _served.length];
        canvas = uint32((which >> 128) % made.signed.length);
    }

    // ------------------------------------------------------------------ accusations

    /// @dev Any rule over any leaves, with any pins: none may hold against an honest trace.
    function attack(uint256 which, uint8 rule, uint32 position, uint256 leaves, uint256 bits, uint256 pins)
        public
    {
        (Served storage made, uint32 canvas) = _choose(which);
        Trace memory trace = _traceOf(made, canvas);
        TraceProof memory proof;
        proof.rule = TraceRule(bound(rule, 0, uint256(type(TraceRule).max)));
        proof.position = uint32(bound(position, 0, TraceBuilder.SIZE));
        _chooseLeaves(proof, trace, leaves, bits);
        _choosePins(proof, trace, pins);
        proof.output = TraceBuilder.outputBytes(trace.output);
        if (_try(traceProof(made.subject, made.signed[canvas], proof))) ++traceHeld[uint256(proof.rule)];
    }

    function _chooseLeaves(TraceProof memory proof, Trace memory trace, uint256 leaves, uint256 bits)
        private
        pure
    {
        uint256 steps = trace.fields.length - 1;
        bool single = proof.rule == TraceRule.CanvasLeaf || proof.rule == TraceRule.Output;
        proof.leaves = new OpenedLeaf[](single ? 1 : 2);
        bool ordered = proof.rule == TraceRule.Output || proof.rule == TraceRule.Continuity;
        uint256 first = ordered ? bound(leaves, 1, steps) : 0;
        proof.leaves[0] = TraceBuilder.open(trace, uint64(first), bits | 0x1f);
        if (single) return;
        uint256 second = ordered ? first + 1 : bound(leaves, 1, steps);
        if (second > steps) second = steps;
        proof.leaves[1] = TraceBuilder.open(trace, uint64(second), ALL_STEP);
    }

    function _choosePins(TraceProof memory proof, Trace memory trace, uint256 pins) private pure {
        uint256 count = trace.pins.length;
        proof.pinCount = uint64(pins % 3 == 0 ? (pins >> 8) % 14 : count);
        if (count == 0) return;
        uint256 first = (pins >> 16) % count;
        uint256 taken = 1 + (pins >> 24) % 2;
        if (first + taken > count) taken = count - first;
        proof.pins = new Pin[](taken);
        for (uint256 i = 0; i < taken; ++i) {
            proof.pins[i] = trace.pins[first + i];
            if (pins % 5 == 0) proof.pins[i].index = uint64((pins >> (32 + 8 * i)) % 14);
        }
    }

    /// @dev Every objective rule over two honest receipts: of one job, in any order of its canvases, or of two jobs.
    function accuse(uint256 which, uint256 other, bool elsewhere) public {
        (Served storage made, uint32 canvas) = _choose(which);
        Served storage second = made;
        uint32 next = uint32((other >> 128) % made.signed.length);
        if (elsewhere) (second, next) = _choose(other);
        for (uint256 rule = 0; rule <= ACCEPTANCES; ++rule) {
            bytes memory proof =
                _accusation(rule, made.subject, made.signed[canvas], second.signed[next], 321);
            if (_try(proof)) ++held[rule];
        }
    }

    /// @dev Whether the verifier read the proof to its end and found no fault.
    function _try(bytes memory proof) private returns (bool) {
        try disputes.prove(proof) {
            ++proved;
            return false;
        } catch (bytes memory reason) {
            bytes4 found = bytes4(reason);
            return found == IEvidenceVerifier.NotBroken.selector
                || found == IEvidenceVerifier.NotContradictory.selector;
        }
    }

    // ------------------------------------------------------------------ questions

    function question(uint256 which, uint32 leaf, uint8 fields, bool byPayer) public returns (bool) {
        uint256 job = uint128(which) % _served.length;
        return _ask(job, uint32((which >> 128) % _served[job].signed.length), leaf, fields, byPayer);
    }

    function answer(uint256 from) public {
        (bool found, uint256 i) = _find(Status.Open, from, block.timestamp, type(uint64).max);
        if (found) _answer(i);
    }

    /// @dev The honest worker answers before its time is over. So whoever lets time pass asks it first.
    function answerBefore(uint256 time) public {
        for (uint256 i = 0; i < _questions.length; ++i) {
            if (_questions[i].status == Status.Open && _questions[i].answerBy < time) _answer(i);
        }
    }

    function _passTo(uint256 time) internal override {
        answerBefore(time);
        vm.warp(time);
    }

    function _mayServe() internal pure override returns (bool) {
        return true;
    }

    function pass(uint64 seconds_) external {
        _passTo(block.timestamp + bound(seconds_, 1, 2 * DAY));
    }

    /// @dev Nobody ends an open question of the honest worker. A challenge that was not judged ends without a verdict.
    function conclude(uint256 from) public {
        (bool found, uint256 i) = _find(Status.Open, from, 0, type(uint64).max);
        if (found) {
            try disputes.conclude(_questions[i].asked) {
                ++proved;
                return;
            } catch {
                ++refusedEnds;
            }
        }
        (found, i) = _find(Status.Escalated, from, 0, type(uint64).max);
        if (!found) return;
        uint256 due = _questions[i].answerBy + DAY + 1;
        if (block.timestamp < due) _passTo(due);
        _endWithoutVerdict(i);
    }

    // ------------------------------------------------------------------ the committee

    /// @dev One member may be corrupt. The other two vote as their replay says: the honest worker is not guilty.
    function verdict(uint256 from, uint8 wrong, bool judged) public {
        (, uint256 i) = _escalated(from);
        bytes32 id = disputes.challengeId(_questions[i].asked);
        uint64 deadline = uint64(block.timestamp + 1 hours);
        bytes[] memory signed = _wrongVotes(id, bound(wrong, 0, 4), deadline);
        try disputes.judge(_questions[i].asked, true, ROOT, deadline, signed) {
            ++proved;
            return;
        } catch {
            ++refusedVerdicts;
        }
        if (judged) _judge(i, false);
    }

    function _wrongVotes(bytes32 id, uint256 wrong, uint64 deadline)
        private
        view
        returns (bytes[] memory signed)
    {
        // The honest members' votes for another outcome, or their votes of guilty about another challenge.
        if (wrong == 0) return votes(id, false, deadline);
        if (wrong == 1) return votes(keccak256(abi.encode(id)), true, deadline);
        signed = new bytes[](wrong == 2 ? 1 : 2);
        signed[0] = vote(memberKeys[0], Verdict(id, true, ROOT, deadline));
        if (wrong == 3) signed[1] = signed[0];
        if (wrong < 4) return signed;
        signed[1] = vote(STRANGER_KEY, Verdict(id, true, ROOT, deadline));
        if (stranger < vm.addr(memberKeys[0])) (signed[0], signed[1]) = (signed[1], signed[0]);
    }

    // ------------------------------------------------------------------ the end of a sequence

    /// @notice Does everything once more, so that no sequence leaves a rule or a state out.
    function finish() external {
        uint256 job = _serve(0, 1, 2, 1, 2, 1);
        uint256 next = job | (1 << 128);
        for (uint8 rule = 0; rule <= uint8(type(TraceRule).max); ++rule) {
            attack(next, rule, rule == uint8(TraceRule.InitialCanvas) ? 1 : 0, 0, ALL_STEP, 1);
        }
        attack(next, uint8(TraceRule.Output), 0, 1, ALL_STEP, 1);
        accuse(job, next, false);
        vm.assertEq(proved, 0, "an accusation held against an honest worker");
        for (uint256 i = 0; i < 7; ++i) {
            vm.assertTrue(traceHeld[i] > 0, "each rule of traces was read to its end");
            if (i < 6) vm.assertTrue(held[i] > 0, "each objective rule was read to its end");
        }
        vm.assertTrue(question(next, 1, 1, false), "asked");
        conclude(_questions.length - 1);
        for (uint8 wrong = 0; wrong < 5; ++wrong) {
            verdict(_questions.length - 1, wrong, wrong == 4);
        }
        verdict(_questions.length - 1, 0, false);
        conclude(_questions.length - 1);
        vm.assertEq(proved, 0, "a verdict or an end held against an honest worker");
        vm.assertTrue(refusedEnds > 0 && refusedVerdicts > 0, "both were tried");
    }

    /// @notice Answers what is open, and lets the time of every verdict pass.
    function close() external {
        answerBefore(type(uint64).max);
        vm.assertEq(bondsHeld, 0, "every question was answered");
        for (uint256 i = 0; i < _questions.length; ++i) {
            if (_questions[i].status != Status.Escalated) continue;
            uint256 due = _questions[i].answerBy + DAY + 1;
            if (block.timestamp < due) vm.warp(due);
            _endWithoutVerdict(i);
        }
    }

    function servedJobs() external view returns (uint256) {
        return _served.length;
    }

    // ------------------------------------------------------------------ what must hold

    /// @notice What CarelessHandler shares with this.
    function shared() external view returns (Shared memory) {
        return Shared(escrow, token, hashes, verifier, disputes, registry);
    }

    function stake() external view returns (uint128) {
        return stakeOf(operator);
    }

    function isActive() external view returns (bool) {
        return registry.isActive(operator);
    }
}
