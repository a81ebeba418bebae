// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Status} from "../../src/interfaces/IDisputes.sol";
import {
    Challenge,
    IEvidenceVerifier,
    JobOfChannel,
    SignedReceipt
} from "../../src/interfaces/IEvidenceVerifier.sol";
import {WorkerView} from "../../src/interfaces/IWorkerRegistry.sol";
import {Offer, OfferTypes} from "../../src/libraries/OfferTypes.sol";
import {PieceworkTypes, Receipt} from "../../src/libraries/PieceworkTypes.sol";
import {DisputesBase} from "./DisputesBase.sol";
import {OfferBuilder} from "./OfferBuilder.sol";
import {Trace, TraceBuilder} from "./TraceBuilder.sol";

/// @notice One worker: the jobs that it served, and every accusation and question about them.
abstract contract ServedJobs is DisputesBase {
    uint256 internal constant EQUIVOCATION = 0;
    uint256 internal constant CHAIN = 1;
    uint256 internal constant BEGINNING = 2;
    uint256 internal constant EXCESS = 3;
    uint256 internal constant OVERCHARGE = 4;
    uint256 internal constant ACCEPTANCES = 5;
    /// @dev Prices of both entries of the offer. Neither divides a million, so that rounding matters.
    uint128 private constant _LOW = 333_333;
    uint128 private constant _HIGH = 1_000_001;

    /// @param signed receipts by canvas
    struct Served {
        JobOfChannel subject;
        SignedReceipt[] signed;
        uint32 steps;
        uint256 pins;
        uint64 registration;
    }

    /// @param status what the contract must say of it
    struct Question {
        Challenge asked;
        uint256 job;
        uint32 canvas;
        uint64 registration;
        uint64 answerBy;
        Status status;
    }

    Served[] internal _served;
    Question[] internal _questions;
    /// @dev Of the offer that every job names.
    bytes32 internal _offerDigest;
    /// @notice Bonds of open questions, wei.
    uint256 public bondsHeld;
    /// @notice Bonds of challenges before the committee, base units.
    uint256 public escalationsHeld;

    // ------------------------------------------------------------------ jobs

    function _offer() internal view returns (Offer memory) {
        return OfferBuilder.offer(operator, receiver, _LOW, _HIGH);
    }

    /// @dev A job whose receipts follow clauses 4.1 and 4.4 of docs/protocol.md.
    function _serve(uint8 kind, uint8 finish, uint32 steps, uint256 pins, uint32 canvases, uint32 entry)
        internal
        returns (uint256 index)
    {
        if (_offerDigest == 0) _offerDigest = digestOf(OfferTypes.hashOffer(_offer()));
        JobOfChannel memory subject = newJob(kind);
        (subject.job.offer, subject.job.entry) = (_offerDigest, entry);
        index = _served.length;
        Served storage made = _served.push();
        made.subject = subject;
        (made.steps, made.pins, made.registration) = (steps, pins, _registration());
        Receipt memory receipt;
        for (uint32 canvas = 0; canvas < canvases; ++canvas) {
            Trace memory trace = TraceBuilder.honest(subject.job, canvas, steps, pins);
            receipt = _next(subject, receipt, canvas, trace);
            receipt.finish = canvas + 1 < canvases ? 0 : finish;
            made.signed.push(signReceipt(receipt));
        }
    }

    /// @dev The receipt of `canvas`, behind `earlier`, which is all zero for the first.
    function _next(JobOfChannel memory subject, Receipt memory earlier, uint32 canvas, Trace memory trace)
        private
        view
        returns (Receipt memory r)
    {
        r = receiptOf(subject, trace, 0);
        r.canvas = canvas;
        r.outputDigest = keccak256(abi.encodePacked(r.job, canvas, TraceBuilder.outputBytes(trace.output)));
        if (canvas > 0) r.previous = digestOf(PieceworkTypes.hashReceipt(earlier));
        r.totalUnits = earlier.totalUnits + r.units;
        r.totalSteps = earlier.totalSteps + r.steps;
        uint256 priced = uint256(r.totalPromptTokens) + r.totalUnits + 1000 * uint256(r.totalSteps);
        r.totalAmount = uint128(priced * (subject.job.entry == 0 ? _LOW : _HIGH) / 1_000_000);
        r.amount = r.totalAmount - earlier.totalAmount;
    }

    function _traceOf(Served storage made, uint32 canvas) internal view returns (Trace memory) {
        return TraceBuilder.honest(made.subject.job, canvas, made.steps, made.pins);
    }

    function _registration() internal view returns (uint64) {
        try registry.getWorker(operator) returns (WorkerView memory worker) {
            return worker.id;
        } catch {
            return 0;
        }
    }

    // ------------------------------------------------------------------ accusations

    /// @dev The call of an objective rule. Two receipts are of any job and canvas; one is read by some rules.
    function _accusation(
        uint256 rule,
        JobOfChannel memory subject,
        SignedReceipt memory one,
        SignedReceipt memory other,
        uint32 promptTokens
    ) internal view returns (bytes memory) {
        if (rule == EQUIVOCATION) return equivocation(subject, one, other);
        if (rule == CHAIN) {
            return abi.encodeCall(IEvidenceVerifier.proveBrokenChain, (subject, one, other));
        }
        if (rule == BEGINNING) return abi.encodeCall(IEvidenceVerifier.proveBrokenBeginning, (subject, one));
        if (rule == EXCESS) return abi.encodeCall(IEvidenceVerifier.proveExcess, (subject, one));
        if (rule == OVERCHARGE) return _overcharge(subject, one);
        return abi.encodeCall(
            IEvidenceVerifier.proveAcceptances,
            (subject, acceptance(subject, 321, 1), acceptance(subject, promptTokens, 2))
        );
    }

    function _overcharge(JobOfChannel memory subject, SignedReceipt memory over)
        private
        view
        returns (bytes memory)
    {
        return abi.encodeCall(
            IEvidenceVerifier.proveOvercharge,
            (subject, over, OfferBuilder.opening(_offer(), subject.job.entry))
        );
    }

    // ------------------------------------------------------------------ questions

    /// @dev Asks, unless the contract has no place for this question now.
    function _ask(uint256 job, uint32 canvas, uint32 leaf, uint8 fields, bool byPayer)
        internal
        returns (bool)
    {
        Served storage made = _served[job];
        leaf = uint32(bound(leaf, 0, made.steps));
        fields = uint8(bound(fields, 1, leaf == 0 ? 0x3f : ALL_STEP));
        address challenger = byPayer ? payer : authorizer;
        (Challenge memory asked,) = verifier.ask(challenger, made.subject, made.signed[canvas], leaf, fields);
        bytes32 id = disputes.challengeId(asked);
        if (block.timestamp > made.subject.job.deadline + 3 * DAY) return false;
        if (disputes.openOf(asked.channel) != 0) return false;
        if (disputes.getChallenge(id).status != Status.None) return false;
        uint256 bond = disputes.requiredBond();
        bytes memory question = abi.encodeCall(
            IEvidenceVerifier.ask, (challenger, made.subject, made.signed[canvas], leaf, fields)
        );
        vm.prank(challenger);
        disputes.challenge{value: bond}(question);
        bondsHeld += bond;
        uint64 answerBy = disputes.getChallenge(id).answerBy;
        _questions.push(Question(asked, job, canvas, _registration(), answerBy, Status.Open));
        return true;
    }

    /// @dev Opens what was asked, in time or behind a silence.
    function _answer(uint256 i) internal {
        Question storage q = _questions[i];
        Trace memory trace = _traceOf(_served[q.job], q.canvas);
        disputes.answer(q.asked, TraceBuilder.open(trace, q.asked.leaf, q.asked.fields));
        if (q.status == Status.Open) bondsHeld -= disputes.requiredBond();
        q.status = q.status == Status.Open ? Status.Answered : Status.Late;
    }

    function _escalate(uint256 i) internal {
        Question storage q = _questions[i];
        address challenger = q.asked.challenger;
        token.mint(challenger, 3 * VERDICT_FEE);
        vm.prank(challenger);
        token.approve(address(disputes), 3 * VERDICT_FEE);
        vm.prank(challenger);
        disputes.escalate(q.asked);
        escalationsHeld += 3 * VERDICT_FEE;
        q.status = Status.Escalated;
    }

    function _judge(uint256 i, bool guilty) internal {
        Question storage q = _questions[i];
        uint64 deadline = uint64(block.timestamp + 1 hours);
        bytes32 id = disputes.challengeId(q.asked);
        disputes.judge(q.asked, guilty, ROOT, deadline, votes(id, guilty, deadline));
        escalationsHeld -= 3 * VERDICT_FEE;
        q.status = guilty ? Status.Guilty : Status.NotGuilty;
    }

    /// @dev Of an escalated challenge that nobody judged.
    function _endWithoutVerdict(uint256 i) internal {
        disputes.conclude(_questions[i].asked);
        escalationsHeld -= 3 * VERDICT_FEE;
        _questions[i].status = Status.NoVerdict;
    }

    /// @dev The first question from a place on that is in a state and due in some time. One in the state Answered can
    /// be escalated.
    function _find(Status status, uint256 from, uint256 earliest, uint256 latest)
        internal
        view
        returns (bool, uint256)
    {
        uint256 count = _questions.length;
        for (uint256 step = 0; step < count; ++step) {
            uint256 i = addmod(from, step, count);
            Question storage q = _questions[i];
            if (q.status != status || q.answerBy < earliest || q.answerBy > latest) continue;
            if (status == Status.Answered && (q.asked.leaf == 0 || disputes.openOf(q.asked.channel) != 0)) {
                continue;
            }
            return (true, i);
        }
        return (false, 0);
    }

    function _passTo(uint256 time) internal virtual;

    /// @dev Whether the worker takes jobs now that can be challenged.
    function _mayServe() internal virtual returns (bool);

    /// @dev A challenge that is before the committee: one that is there, or can go there, or a new one.
    function _escalated(uint256 from) internal returns (bool found, uint256 i) {
        (found, i) = _find(Status.Escalated, from, block.timestamp - DAY, type(uint64).max);
        if (found) return (true, i);
        (found, i) = _find(Status.Answered, from, block.timestamp - 12 hours, type(uint64).max);
        if (!found) {
            if (!_mayServe()) return (false, 0);
            uint256 job = _serve(0, 1, 2, from, 1, 1);
            _ask(job, 0, 1, ALL_STEP, from % 2 == 0);
            i = _questions.length - 1;
            _answer(i);
        }
        _escalate(i);
        return (true, i);
    }
}
