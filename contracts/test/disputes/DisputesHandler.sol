// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Status} from "../../src/interfaces/IDisputes.sol";
import {
    Challenge,
    IEvidenceVerifier,
    JobOfChannel,
    SignedReceipt
} from "../../src/interfaces/IEvidenceVerifier.sol";
import {PieceworkTypes, Receipt} from "../../src/libraries/PieceworkTypes.sol";
import {OpenedLeaf} from "../../src/libraries/TraceLeaves.sol";
import {Pin, TraceProof, TraceRule} from "../../src/libraries/TraceRules.sol";
import {DisputesBase} from "./DisputesBase.sol";
import {Trace, TraceBuilder} from "./TraceBuilder.sol";

/// @notice An honest worker serves jobs of every kind and finish and answers what it is asked. Everybody else tries every
/// rule against it. A second worker, the careless one, is silent, unbonds, and is judged.
contract DisputesHandler is DisputesBase {
    uint256 private constant CARELESS_KEY = 0xCA7E;

    struct Served {
        JobOfChannel subject;
        SignedReceipt signed;
        uint32 steps;
        uint256 pins;
    }

    Served[] private _served;
    uint256 public proved;
    uint256 public attempts;
    uint256 public asked;
    uint256 public answered;
    uint256 public silences;
    uint256 public staked;
    /// @notice Silences by the time at which their answers were due.
    uint64[] public dueAt;
    uint128[] public dueSlashed;

    /// @dev No constructor: it would hold all of this code a second time, and solc fails on so much.
    function setUp() public override {
        super.setUp();
        _serve(0, 1, 2, 5);
        staked = STAKE;
    }

    function _serve(uint8 kind, uint8 finish, uint32 steps, uint256 pins) private {
        JobOfChannel memory subject = newJob(kind);
        Trace memory trace = TraceBuilder.honest(subject.job, 0, steps, pins);
        Receipt memory receipt = receiptOf(subject, trace, finish);
        Served storage made = _served.push();
        made.subject = subject;
        made.signed = signReceipt(receipt);
        (made.steps, made.pins) = (steps, pins);
    }

    /// @dev Every kind and every finish that goes with it.
    function serve(uint8 kind, uint8 finish, uint32 steps, uint256 pins) external {
        kind = uint8(bound(kind, 0, 1));
        finish = uint8(bound(finish, 0, 3));
        steps = kind == 1 ? 1 : uint32(bound(steps, 1, 4));
        _serve(kind, finish, steps, pins);
    }

    function _trace(Served storage made) private view returns (Trace memory) {
        return TraceBuilder.honest(made.subject.job, 0, made.steps, made.pins);
    }

    /// @dev Any rule over any leaves, with any pins: none may hold against an honest trace.
    function attack(uint256 which, uint8 rule, uint32 position, uint256 leaves, uint256 bits, uint256 pins)
        external
    {
        Served storage made = _served[which % _served.length];
        Trace memory trace = _trace(made);
        TraceProof memory proof;
        proof.rule = TraceRule(bound(rule, 0, uint256(type(TraceRule).max)));
        proof.position = uint32(bound(position, 0, TraceBuilder.SIZE));
        bool single = proof.rule == TraceRule.CanvasLeaf || proof.rule == TraceRule.Output;
        proof.leaves = new OpenedLeaf[](single ? 1 : 2);
        bool ordered = proof.rule == TraceRule.Output || proof.rule == TraceRule.Continuity;
        uint64 first = ordered ? uint64(bound(leaves, 1, made.steps)) : 0;
        proof.leaves[0] = TraceBuilder.open(trace, first, bits | 0x1f);
        if (!single) {
            uint256 second = ordered ? first + 1 : bound(leaves, 1, made.steps);
            if (second > made.steps) second = made.steps;
            proof.leaves[1] = TraceBuilder.open(trace, uint64(second), 0x7f);
        }
        _choosePins(proof, trace, pins);
        proof.output = TraceBuilder.outputBytes(trace.output);
        _try(traceProof(made.subject, made.signed, proof));
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

    /// @dev Every objective rule over two honest receipts.
    function accuse(uint256 which, uint256 other, uint8 rule) external {
        Served storage made = _served[which % _served.length];
        Served storage second = _served[other % _served.length];
        rule = uint8(bound(rule, 0, 4));
        if (rule == 0) _try(equivocation(made.subject, made.signed, second.signed));
        if (rule == 1) _try(_chain(made, second));
        if (rule == 2) {
            _try(abi.encodeCall(IEvidenceVerifier.proveBrokenBeginning, (made.subject, made.signed)));
        }
        if (rule == 3) _try(abi.encodeCall(IEvidenceVerifier.proveExcess, (made.subject, made.signed)));
        if (rule == 4) {
            _try(
                abi.encodeCall(
                    IEvidenceVerifier.proveAcceptances,
                    (made.subject, acceptance(made.subject, 321, 1), acceptance(made.subject, 321, 2))
                )
            );
        }
    }

    function _chain(Served storage one, Served storage two) private view returns (bytes memory) {
        return abi.encodeCall(IEvidenceVerifier.proveBrokenChain, (one.subject, one.signed, two.signed));
    }

    function _try(bytes memory proof) private {
        ++attempts;
        try disputes.prove(proof) {
            ++proved;
        } catch {}
    }

    /// @dev The honest worker answers at some time inside the window, the careless one never.
    function challengeAndAnswer(uint256 which, uint32 leaf, uint8 fields, bool careless, uint64 wait)
        external
    {
        if (careless) _becomeCareless();
        Served storage made = _served[which % _served.length];
        leaf = uint32(bound(leaf, 0, made.steps));
        fields = uint8(bound(fields, 1, leaf == 0 ? 0x3f : 0x7f));
        if (!_isFresh(made, leaf, fields)) return;
        (, Challenge memory question) = ask(made.subject, made.signed, leaf, fields);
        ++asked;
        later(uint64(bound(wait, 0, DAY)));
        disputes.answer(question, TraceBuilder.open(_trace(made), leaf, fields));
        ++answered;
    }

    function _isFresh(Served storage made, uint32 leaf, uint8 fields) private view returns (bool) {
        if (block.timestamp > made.subject.job.deadline + 3 * DAY) return false;
        (Challenge memory question,) = verifier.ask(payer, made.subject, made.signed, leaf, fields);
        return disputes.getChallenge(disputes.challengeId(question)).status == Status.None;
    }

    function _becomeCareless() private {
        if (registry.registrationNonce(vm.addr(CARELESS_KEY)) > 0) return;
        stakeFor(CARELESS_KEY, STAKE);
        staked += STAKE;
    }

    /// @dev A receipt of the careless worker that nobody opens, concluded after some time.
    function beSilent(uint128 amount, uint64 wait) external {
        _becomeCareless();
        address careless = vm.addr(CARELESS_KEY);
        address honest = operator;
        operator = careless;
        JobOfChannel memory subject = newJob(0);
        Receipt memory r = receiptOf(subject, TraceBuilder.honest(subject.job, 0, 1, 0), 1);
        r.amount = uint128(bound(amount, 0, 1e9));
        SignedReceipt memory signed = SignedReceipt(r, _signCareless(r));
        (bytes32 id, Challenge memory question) = ask(subject, signed, 1, 1);
        operator = honest;
        uint64 due = disputes.getChallenge(id).answerBy;
        vm.warp(due + 1 + bound(wait, 0, 12 hours));
        uint128 before = stakeOf(careless);
        disputes.conclude(question);
        dueAt.push(due);
        dueSlashed.push(before - stakeOf(careless));
        ++silences;
    }

    function _signCareless(Receipt memory r) private view returns (bytes memory) {
        return signHash(CARELESS_KEY, PieceworkTypes.hashReceipt(r));
    }

    function push(bool toPayer) external {
        address who = toPayer ? payer : operator;
        (uint256 tokens, uint256 coins) = disputes.creditsOf(who);
        if (tokens + coins > 0) disputes.pushCredits(who);
    }

    // ------------------------------------------------------------------ what must hold

    function honestStake() external view returns (uint128) {
        return stakeOf(operator);
    }

    function honestIsActive() external view returns (bool) {
        return registry.isActive(operator);
    }

    /// @notice What is staked, forfeited, rewarded.
    function accounted() external view returns (uint256) {
        uint256 careless =
            registry.registrationNonce(vm.addr(CARELESS_KEY)) > 0 ? stakeOf(vm.addr(CARELESS_KEY)) : 0;
        return stakeOf(operator) + careless + registry.forfeited() + registry.rewardOf(address(disputes));
    }

    function heldByRegistry() external view returns (uint256) {
        return token.balanceOf(address(registry));
    }

    function coins() external view returns (uint256 held, uint256 owed) {
        held = address(disputes).balance;
        (, uint256 a) = disputes.creditsOf(payer);
        (, uint256 b) = disputes.creditsOf(operator);
        (, uint256 c) = disputes.creditsOf(vm.addr(CARELESS_KEY));
        owed = a + b + c;
    }

    /// @notice The most that silences due within 24 hours took, and a tenth of the stake before them.
    function worstDay() external view returns (uint256 worst, uint256 tenth) {
        tenth = STAKE / 10;
        for (uint256 i = 0; i < dueAt.length; ++i) {
            uint256 sum = 0;
            for (uint256 j = 0; j < dueAt.length; ++j) {
                if (dueAt[j] >= dueAt[i] && dueAt[j] - dueAt[i] <= DAY) sum += dueSlashed[j];
            }
            if (sum > worst) worst = sum;
        }
    }
}
