// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {DisputeTerms, IDisputes, Status} from "../../src/interfaces/IDisputes.sol";
import {
    Challenge,
    IEvidenceVerifier,
    JobOfChannel,
    SignedReceipt
} from "../../src/interfaces/IEvidenceVerifier.sol";
import {IWorkerRegistry} from "../../src/interfaces/IWorkerRegistry.sol";
import {Verdict} from "../../src/libraries/EvidenceTypes.sol";
import {PieceworkTypes} from "../../src/libraries/PieceworkTypes.sol";
import {OpenedLeaf, TraceLeaves} from "../../src/libraries/TraceLeaves.sol";
import {DisputesBase} from "./DisputesBase.sol";
import {Trace, TraceBuilder} from "./TraceBuilder.sol";

/// @notice A payer that calls again while it is paid.
contract Reentering {
    IDisputes private immutable _disputes;

    constructor(IDisputes disputes) {
        _disputes = disputes;
    }

    receive() external payable {
        _disputes.pushCredits(address(this));
    }
}

/// @notice A payer that makes one call while it is paid, and keeps why it was refused.
contract Calling {
    address private immutable _target;
    bytes private _call;
    bytes4 public reason;

    constructor(address target) {
        _target = target;
    }

    function arm(bytes calldata call_) external {
        (_call, reason) = (call_, 0);
    }

    receive() external payable {
        (bool done, bytes memory why) = _target.call(_call);
        if (!done) reason = bytes4(why);
    }
}

/// @notice The life of a challenge: opening, answer, silence, verdict, and where every coin goes.
contract ChallengesTest is DisputesBase {
    uint128 private constant SILENCE = 1000 * AMOUNT + 20 * PROVING_COST;

    function _question(JobOfChannel memory subject, SignedReceipt memory signed, uint32 leaf, uint8 fields)
        private
        view
        returns (bytes memory)
    {
        return abi.encodeCall(IEvidenceVerifier.ask, (payer, subject, signed, leaf, fields));
    }

    function _refused(bytes memory question, bytes4 reason) private {
        uint256 bond = disputes.requiredBond();
        vm.expectPartialRevert(reason);
        vm.prank(payer);
        disputes.challenge{value: bond}(question);
    }

    // ------------------------------------------------------------------ opening

    function test_a_challenge_freezes_the_stake_through_its_verdict() public {
        (bytes32 id, Challenge memory asked,) = challenged();
        expectStatus(id, Status.Open);
        vm.assertEq(disputes.getChallenge(id).answerBy, block.timestamp + DAY, "answerBy");
        vm.assertEq(registry.getWorker(operator).frozenUntil, block.timestamp + 2 * DAY + 1, "frozen");
        vm.assertEq(disputes.openOf(asked.channel), id, "open");
        vm.assertEq(disputes.openCount(operator), 1, "count");
        vm.assertEq(address(disputes).balance, disputes.getChallenge(id).bond, "bond");
    }

    function test_the_bond_is_twice_an_answers_gas_and_at_least_the_minimum() public {
        vm.fee(0);
        vm.assertEq(disputes.requiredBond(), MIN_BOND, "minimum");
        vm.fee(50 gwei);
        vm.assertEq(disputes.requiredBond(), 420_000 * 50 gwei, "by base fee");
        (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 2, 0);
        bytes memory question = _question(subject, signed, 1, 1);
        uint256 bond = disputes.requiredBond();
        vm.expectRevert(abi.encodeWithSelector(IDisputes.BondTooSmall.selector, bond - 1, bond));
        vm.prank(payer);
        disputes.challenge{value: bond - 1}(question);
    }

    function test_a_bond_that_its_place_does_not_hold_is_refused() public {
        (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 2, 0);
        bytes memory question = _question(subject, signed, 1, 1);
        vm.deal(payer, 2 ** 97);
        vm.expectPartialRevert(IDisputes.BondTooSmall.selector);
        vm.prank(payer);
        disputes.challenge{value: 2 ** 96}(question);
        vm.prank(payer);
        bytes32 id = disputes.challenge{value: 2 ** 96 - 1}(question);
        vm.assertEq(disputes.getChallenge(id).bond, 2 ** 96 - 1, "bond");
    }

    function test_a_worker_that_never_registered_is_not_challenged() public {
        (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 2, 0);
        subject.channel.operator = vm.addr(STRANGER_KEY);
        subject.job.channel = escrow.channelId(subject.channel);
        signed.receipt.job = jobId(subject);
        signed.signature = signHash(STRANGER_KEY, PieceworkTypes.hashReceipt(signed.receipt));
        _refused(_question(subject, signed, 1, 1), IWorkerRegistry.UnknownWorker.selector);
        vm.assertEq(address(disputes).balance, 0, "the bond is not taken");
    }

    function test_a_worker_that_challenges_itself_gains_nothing() public {
        payer = operator;
        vm.deal(payer, 1 ether);
        (, Challenge memory asked, OpenedLeaf memory leaf) = challenged();
        disputes.answer(asked, leaf);
        (, asked,) = challenged();
        later(DAY + 1);
        disputes.conclude(asked);
        disputes.pushCredits(operator);
        vm.assertEq(operator.balance, 1 ether, "only what it had");
        vm.assertEq(address(disputes).balance, 0, "nothing of anybody else");
        vm.assertEq(stakeOf(operator), STAKE - SILENCE, "stake");
    }

    function test_only_payer_and_authorizer_challenge() public {
        (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 2, 0);
        bytes memory question = abi.encodeCall(IEvidenceVerifier.ask, (stranger, subject, signed, 1, 1));
        vm.deal(stranger, 1 ether);
        vm.expectPartialRevert(IEvidenceVerifier.NotPayerOrAuthorizer.selector);
        vm.prank(stranger);
        disputes.challenge{value: 1 ether}(question);
        question = _question(subject, signed, 1, 1);
        vm.expectPartialRevert(IDisputes.NotChallenger.selector);
        vm.prank(stranger);
        disputes.challenge{value: 1 ether}(question);
        question = abi.encodeCall(IEvidenceVerifier.ask, (authorizer, subject, signed, 1, 1));
        vm.prank(authorizer);
        disputes.challenge{value: 1 ether}(question);
    }

    function test_a_challenge_is_about_a_receipt_of_its_job_that_the_worker_signed() public {
        (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 2, 0);
        bytes memory worker = signed.signature;
        signed.signature = signHash(STRANGER_KEY, PieceworkTypes.hashReceipt(signed.receipt));
        _refused(_question(subject, signed, 1, 1), IEvidenceVerifier.NotSignedBy.selector);
        (,, SignedReceipt memory other) = served(0, 1, 2, 0);
        _refused(_question(subject, other, 1, 1), IEvidenceVerifier.NotTheJob.selector);
        signed.signature = worker;
        (, Challenge memory asked) = ask(subject, signed, 1, 1);
        vm.assertEq(asked.receipt, digestOf(PieceworkTypes.hashReceipt(signed.receipt)), "receipt");
    }

    function test_a_challenge_names_a_leaf_and_its_fields() public {
        (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 2, 0);
        _refused(_question(subject, signed, 3, 1), IEvidenceVerifier.BadLeaf.selector);
        _refused(_question(subject, signed, 1, 0), IEvidenceVerifier.BadLeaf.selector);
        _refused(_question(subject, signed, 0, 0x40), IEvidenceVerifier.BadLeaf.selector);
        _refused(_question(subject, signed, 1, 0x80), IEvidenceVerifier.BadLeaf.selector);
        signed.receipt.steps = 0;
        signed = signReceipt(signed.receipt);
        _refused(_question(subject, signed, 0, 1), IEvidenceVerifier.BadLeaf.selector);
    }

    function test_no_challenge_comes_after_its_window() public {
        (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 2, 0);
        vm.warp(subject.job.deadline + 3 * DAY + 1);
        _refused(_question(subject, signed, 1, 1), IDisputes.ChallengeTooLate.selector);
        vm.warp(subject.job.deadline + 3 * DAY);
        ask(subject, signed, 1, 1);
    }

    function test_a_channel_has_one_open_challenge_and_a_question_is_asked_once() public {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 1, 2, 0);
        (, Challenge memory asked) = ask(subject, signed, 1, 1);
        _refused(_question(subject, signed, 2, 1), IDisputes.ChannelHasChallenge.selector);
        disputes.answer(asked, TraceBuilder.open(trace, 1, 1));
        _refused(_question(subject, signed, 1, 1), IDisputes.AlreadyAsked.selector);
        ask(subject, signed, 2, 1);
    }

    function test_what_is_no_question_opens_nothing() public {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 1, 2, 0);
        bytes memory proof = equivocation(subject, signed, signReceipt(receiptOf(subject, trace, 2)));
        _refused(proof, IDisputes.NotAQuestion.selector);
    }

    function test_eight_windows_run_and_more_wait_in_line() public {
        uint64 start = uint64(block.timestamp);
        Challenge memory first;
        OpenedLeaf memory leaf;
        for (uint256 i = 0; i < 9; ++i) {
            (bytes32 id, Challenge memory asked, OpenedLeaf memory opened) = challenged();
            if (i == 0) (first, leaf) = (asked, opened);
            uint64 answerBy = disputes.getChallenge(id).answerBy;
            vm.assertEq(answerBy, i < 8 ? start + DAY : start + 2 * DAY, "answerBy");
        }
        vm.assertEq(disputes.openCount(operator), 9, "open");
        vm.assertEq(registry.getWorker(operator).frozenUntil, start + 3 * DAY + 1, "frozen");
        disputes.answer(first, leaf);
        vm.assertEq(disputes.openCount(operator), 8, "open");
    }

    function test_an_answer_frees_its_lane() public {
        for (uint256 i = 0; i < 20; ++i) {
            (bytes32 id, Challenge memory asked, OpenedLeaf memory leaf) = challenged();
            vm.assertEq(disputes.getChallenge(id).answerBy, block.timestamp + DAY, "no line");
            disputes.answer(asked, leaf);
        }
    }

    /// @dev A worker would fill its own line otherwise: its bonds come back to it.
    function test_nobody_waits_in_line_longer_than_a_week() public {
        uint64 longest = uint64(block.timestamp) + 8 * DAY;
        for (uint256 i = 0; i < 8 * 9; ++i) {
            (JobOfChannel memory s,, SignedReceipt memory r) = served(0, 1, 1, 0);
            (bytes32 id,) = ask(s, r, 1, 1);
            uint64 answerBy = disputes.getChallenge(id).answerBy;
            uint64 inLine = uint64(block.timestamp + (i / 8 + 1) * DAY);
            vm.assertEq(answerBy, inLine < longest ? inLine : longest, "answerBy");
        }
        vm.assertEq(registry.getWorker(operator).frozenUntil, longest + DAY + 1, "frozen");
    }

    /// @dev Answered first to last, the last lane would stay taken until the end of the line.
    function test_when_every_question_is_answered_nobody_waits() public {
        Challenge[] memory asked = new Challenge[](20);
        OpenedLeaf[] memory leaves = new OpenedLeaf[](20);
        for (uint256 i = 0; i < 20; ++i) {
            (, asked[i], leaves[i]) = challenged();
        }
        for (uint256 i = 0; i < 20; ++i) {
            disputes.answer(asked[i], leaves[i]);
        }
        for (uint256 i = 0; i < 8; ++i) {
            (bytes32 id,,) = challenged();
            vm.assertEq(disputes.getChallenge(id).answerBy, block.timestamp + DAY, "no line");
        }
    }

    /// @dev The opened bytes are on the chain, so anybody sends such an answer, also who wants more windows to run.
    function test_an_answer_to_a_question_in_line_starts_no_ninth_window() public {
        uint64 start = uint64(block.timestamp);
        Challenge memory waiting;
        OpenedLeaf memory leaf;
        for (uint256 i = 0; i < 16; ++i) {
            (, Challenge memory asked, OpenedLeaf memory opened) = challenged();
            if (i == 8) (waiting, leaf) = (asked, opened);
        }
        disputes.answer(waiting, leaf);
        (bytes32 id,,) = challenged();
        vm.assertEq(disputes.getChallenge(id).answerBy, start + 2 * DAY, "the first one's window still runs");
    }

    function test_a_stake_is_frozen_in_the_last_second_of_a_verdict() public {
        vm.prank(operator);
        registry.requestUnbond(operator);
        later(6 * DAY);
        (bytes32 id, Challenge memory asked) = _escalated();
        vm.warp(disputes.getChallenge(id).answerBy + DAY);
        vm.expectPartialRevert(IWorkerRegistry.StillFrozen.selector);
        vm.prank(operator);
        registry.withdrawStake(operator);
        disputes.judge(asked, true, ROOT, SOON, votes(id, true, SOON));
        vm.assertEq(stakeOf(operator), STAKE - STAKE / 10, "stake");
    }

    // ------------------------------------------------------------------ answering

    function test_an_answer_ends_the_challenge_and_the_bond_is_the_operators() public {
        (bytes32 id, Challenge memory asked, OpenedLeaf memory leaf) = challenged();
        uint96 bond = disputes.getChallenge(id).bond;
        vm.expectEmit(address(disputes));
        emit IDisputes.LeafOpened(id, true, leaf);
        vm.prank(stranger);
        disputes.answer(asked, leaf);
        expectStatus(id, Status.Answered);
        expectCredits(operator, 0, bond);
        expectCredits(stranger, 0, 0);
        vm.assertEq(stakeOf(operator), STAKE, "stake");
        vm.assertEq(disputes.openCount(operator), 0, "count");
        uint256 before = operator.balance;
        disputes.pushCredits(operator);
        vm.assertEq(operator.balance - before, bond, "sent");
        vm.expectPartialRevert(IDisputes.WrongStatus.selector);
        disputes.answer(asked, leaf);
    }

    function test_another_leaf_or_a_closed_field_is_no_answer() public {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 1, 2, 0);
        (, Challenge memory asked) = ask(subject, signed, 1, 0x06);
        OpenedLeaf memory leaf = TraceBuilder.open(trace, 2, 0x06);
        vm.expectPartialRevert(IDisputes.BadLeaf.selector);
        disputes.answer(asked, leaf);
        leaf = TraceBuilder.open(trace, 1, 0x02);
        vm.expectPartialRevert(TraceLeaves.FieldClosed.selector);
        disputes.answer(asked, leaf);
        leaf = TraceBuilder.open(trace, 1, 0x06);
        leaf.fields[1][0] ^= 0x01;
        vm.expectPartialRevert(TraceLeaves.WrongField.selector);
        disputes.answer(asked, leaf);
        leaf = TraceBuilder.open(trace, 1, 0x06);
        asked.leaf = 2;
        vm.expectPartialRevert(IDisputes.WrongStatus.selector);
        disputes.answer(asked, leaf);
    }

    function test_an_answer_comes_until_the_last_second() public {
        (bytes32 id, Challenge memory asked, OpenedLeaf memory leaf) = challenged();
        later(DAY + 1);
        vm.expectPartialRevert(IDisputes.TooLate.selector);
        disputes.answer(asked, leaf);
        vm.warp(block.timestamp - 1);
        vm.expectPartialRevert(IDisputes.NotDue.selector);
        disputes.conclude(asked);
        disputes.answer(asked, leaf);
        expectStatus(id, Status.Answered);
    }

    // ------------------------------------------------------------------ silence

    function test_silence_gives_the_bond_back_and_pays_nobody() public {
        (bytes32 id, Challenge memory asked,) = challenged();
        uint96 bond = disputes.getChallenge(id).bond;
        later(DAY + 1);
        vm.expectEmit(address(disputes));
        emit IDisputes.Silence(id, operator, SILENCE);
        vm.prank(stranger);
        disputes.conclude(asked);
        expectStatus(id, Status.Silent);
        expectCredits(payer, 0, bond);
        vm.assertEq(stakeOf(operator), STAKE - SILENCE, "stake");
        vm.assertEq(registry.forfeited(), SILENCE, "forfeited");
        vm.assertTrue(registry.isActive(operator), "one silence suspends nobody");
        vm.expectPartialRevert(IDisputes.WrongStatus.selector);
        disputes.conclude(asked);
    }

    function test_a_channel_of_another_token_costs_the_fixed_part_of_a_silence() public {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 1, 1, 0);
        subject.channel.token = address(0x707E);
        subject.job.channel = escrow.channelId(subject.channel);
        signed = signReceipt(receiptOf(subject, trace, 1));
        (, Challenge memory asked) = ask(subject, signed, 1, 1);
        later(DAY + 1);
        disputes.conclude(asked);
        vm.assertEq(stakeOf(operator), STAKE - 20 * PROVING_COST, "stake");
    }

    function _silences(uint256 count) private returns (Challenge[] memory asked, OpenedLeaf[] memory leaves) {
        (asked, leaves) = (new Challenge[](count), new OpenedLeaf[](count));
        for (uint256 i = 0; i < count; ++i) {
            (JobOfChannel memory s, Trace memory trace, SignedReceipt memory r) = served(0, 1, 1, 0);
            r.receipt.amount = 10 ** 9;
            r = signReceipt(r.receipt);
            (, asked[i]) = ask(s, r, 1, 1);
            leaves[i] = TraceBuilder.open(trace, 1, 1);
        }
    }

    function test_one_nights_outage_costs_at_most_a_tenth_however_it_is_concluded() public {
        (Challenge[] memory asked,) = _silences(8);
        later(DAY + 1);
        for (uint256 i = 0; i < 8; ++i) {
            disputes.conclude(asked[i]);
            later(3 * DAY);
        }
        vm.assertEq(stakeOf(operator), STAKE - STAKE / 10, "stake");
    }

    function test_an_outage_over_midnight_costs_at_most_a_tenth_also_from_its_end() public {
        (Challenge[] memory before,) = _silences(1);
        later(DAY);
        (Challenge[] memory behind,) = _silences(1);
        later(DAY + 1);
        disputes.conclude(behind[0]);
        disputes.conclude(before[0]);
        vm.assertEq(stakeOf(operator), STAKE - STAKE / 10, "stake");
    }

    function test_dear_silences_of_days_beside_each_other_cost_a_tenth_together() public {
        for (uint256 i = 0; i < 2; ++i) {
            (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 1, 0);
            signed.receipt.amount = 50_000;
            (, Challenge memory asked) = ask(subject, signReceipt(signed.receipt), 1, 1);
            vm.warp(disputes.getChallenge(disputes.challengeId(asked)).answerBy + 1);
            disputes.conclude(asked);
            uint128 taken = 1000 * 50_000 + 20 * PROVING_COST;
            vm.assertEq(STAKE - stakeOf(operator), i == 0 ? taken : STAKE / 10, "taken");
        }
    }

    function test_three_silences_in_seven_days_suspend_until_all_are_answered() public {
        (Challenge[] memory asked, OpenedLeaf[] memory leaves) = _silences(3);
        later(DAY + 1);
        for (uint256 i = 0; i < 3; ++i) {
            vm.assertTrue(registry.isActive(operator), "active");
            disputes.conclude(asked[i]);
        }
        vm.assertTrue(!registry.isActive(operator), "suspended");
        uint128 stake = stakeOf(operator);
        for (uint256 i = 0; i < 3; ++i) {
            vm.assertTrue(!registry.isActive(operator), "still suspended");
            disputes.answer(asked[i], leaves[i]);
            expectStatus(disputes.challengeId(asked[i]), Status.Late);
        }
        vm.assertTrue(registry.isActive(operator), "active again");
        vm.assertEq(stakeOf(operator), stake, "a late answer gives nothing back");
        expectCredits(operator, 0, 0);
    }

    function test_three_silences_over_more_days_suspend_nobody() public {
        for (uint256 i = 0; i < 3; ++i) {
            (, Challenge memory asked,) = challenged();
            later(4 * DAY);
            disputes.conclude(asked);
        }
        vm.assertTrue(registry.isActive(operator), "active");
    }

    /// @dev Nobody answers them. The second is due a day after the first, the third `gap` after the second.
    function _threeDue(uint64 gap)
        private
        returns (Challenge memory first, Challenge memory second, Challenge memory third)
    {
        (, first,) = challenged();
        later(DAY);
        (, second,) = challenged();
        later(gap);
        (, third,) = challenged();
        later(DAY + 1);
    }

    function test_silences_count_by_the_days_they_were_due_in_any_order() public {
        (Challenge memory first, Challenge memory second, Challenge memory third) = _threeDue(7 * DAY);
        disputes.conclude(first);
        disputes.conclude(third);
        disputes.conclude(second);
        vm.assertTrue(registry.isActive(operator), "eight days are more than seven");
    }

    /// @dev In that order the first one is due before both that are on record.
    function test_silences_count_by_their_days_also_if_the_first_is_concluded_last() public {
        (Challenge memory first, Challenge memory second, Challenge memory third) = _threeDue(7 * DAY);
        disputes.conclude(second);
        disputes.conclude(third);
        disputes.conclude(first);
        vm.assertTrue(registry.isActive(operator), "eight days are more than seven");
    }

    function test_three_silences_suspend_up_to_seven_days_to_the_second() public {
        uint256 clean = vm.snapshotState();
        for (uint64 more = 0; more < 2; ++more) {
            vm.revertToState(clean);
            clean = vm.snapshotState();
            (Challenge memory first, Challenge memory second, Challenge memory third) =
                _threeDue(6 * DAY + more);
            disputes.conclude(first);
            disputes.conclude(second);
            disputes.conclude(third);
            vm.assertTrue(registry.isActive(operator) == (more == 1), "seven days");
        }
    }

    function test_a_suspension_dies_with_the_registration() public {
        (Challenge[] memory asked, OpenedLeaf[] memory leaves) = _silences(3);
        later(DAY + 1);
        for (uint256 i = 0; i < 3; ++i) {
            disputes.conclude(asked[i]);
        }
        vm.prank(operator);
        registry.requestUnbond(operator);
        later(7 * DAY);
        vm.prank(operator);
        registry.withdrawStake(operator);
        stakeFor(OPERATOR_KEY, STAKE);
        vm.assertTrue(registry.isActive(operator), "a new registration");
        disputes.answer(asked[0], leaves[0]);
        vm.assertTrue(registry.isActive(operator), "an old silence means nothing to it");
    }

    function test_a_frozen_stake_cannot_leave_before_the_silence_is_concluded() public {
        (, Challenge memory asked,) = challenged();
        vm.prank(operator);
        registry.requestUnbond(operator);
        later(DAY + 1);
        vm.expectPartialRevert(IWorkerRegistry.StillBonded.selector);
        vm.prank(operator);
        registry.withdrawStake(operator);
        disputes.conclude(asked);
        vm.assertEq(stakeOf(operator), STAKE - SILENCE, "stake");
    }

    function test_a_silence_of_a_worker_that_left_gives_the_bond_back() public {
        vm.prank(operator);
        registry.requestUnbond(operator);
        (bytes32 id, Challenge memory asked,) = challenged();
        later(7 * DAY);
        vm.prank(operator);
        registry.withdrawStake(operator);
        uint96 bond = disputes.getChallenge(id).bond;
        disputes.conclude(asked);
        expectCredits(payer, 0, bond);
        vm.assertEq(registry.forfeited(), 0, "nothing to slash");
    }

    // ------------------------------------------------------------------ the committee

    function _escalated() private returns (bytes32 id, Challenge memory asked) {
        OpenedLeaf memory leaf;
        (id, asked, leaf) = challenged();
        disputes.answer(asked, leaf);
        approveEscalation();
        vm.expectEmit(address(disputes));
        emit IDisputes.ChallengeEscalated(id, operator, uint64(block.timestamp + 2 * DAY));
        vm.prank(payer);
        disputes.escalate(asked);
        expectStatus(id, Status.Escalated);
    }

    function test_a_challenge_is_judged_once_and_not_before_it_is_escalated() public {
        // Another open challenge, so that no count of open ones would stop a verdict.
        challenged();
        (bytes32 id, Challenge memory asked, OpenedLeaf memory leaf) = challenged();
        bytes[] memory signed = votes(id, true, SOON);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.WrongStatus.selector, id, Status.Open));
        disputes.judge(asked, true, ROOT, SOON, signed);
        disputes.answer(asked, leaf);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.WrongStatus.selector, id, Status.Answered));
        disputes.judge(asked, true, ROOT, SOON, signed);
        (id, asked) = _escalated();
        signed = votes(id, true, SOON);
        disputes.judge(asked, true, ROOT, SOON, signed);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.WrongStatus.selector, id, Status.Guilty));
        disputes.judge(asked, true, ROOT, SOON, signed);
    }

    function test_guilty_pays_the_members_out_of_the_slash_and_gives_the_bond_back() public {
        (bytes32 id, Challenge memory asked) = _escalated();
        uint128 slashed = STAKE / 10;
        vm.expectEmit(address(disputes));
        emit IDisputes.VerdictGiven(id, operator, true, ROOT, slashed);
        vm.prank(stranger);
        disputes.judge(asked, true, ROOT, SOON, votes(id, true, SOON));
        expectStatus(id, Status.Guilty);
        uint128 reward = 20 * PROVING_COST;
        expectCredits(payer, 3 * VERDICT_FEE + reward, 0);
        expectCredits(vm.addr(memberKeys[0]), VERDICT_FEE, 0);
        expectCredits(vm.addr(memberKeys[1]), VERDICT_FEE, 0);
        vm.assertEq(stakeOf(operator), STAKE - slashed, "stake");
        vm.assertEq(registry.forfeited(), slashed - 2 * VERDICT_FEE - reward, "forfeited");
        disputes.pushCredits(payer);
        disputes.pushCredits(vm.addr(memberKeys[0]));
        disputes.pushCredits(vm.addr(memberKeys[1]));
        vm.assertEq(token.balanceOf(address(disputes)), 0, "all is sent");
    }

    function test_not_guilty_pays_members_and_worker_out_of_the_bond() public {
        (bytes32 id, Challenge memory asked) = _escalated();
        disputes.judge(asked, false, ROOT, SOON, votes(id, false, SOON));
        expectStatus(id, Status.NotGuilty);
        expectCredits(payer, 0, 0);
        expectCredits(vm.addr(memberKeys[0]), VERDICT_FEE, 0);
        expectCredits(vm.addr(memberKeys[1]), VERDICT_FEE, 0);
        (uint256 tokens,) = disputes.creditsOf(operator);
        vm.assertEq(tokens, VERDICT_FEE, "the worker");
        vm.assertEq(stakeOf(operator), STAKE, "stake");
    }

    function test_no_verdict_gives_the_bond_back_and_slashes_nothing() public {
        (bytes32 id, Challenge memory asked) = _escalated();
        later(2 * DAY);
        vm.expectPartialRevert(IDisputes.NotDue.selector);
        disputes.conclude(asked);
        bytes[] memory signed = votes(id, true, SOON);
        later(1);
        vm.expectPartialRevert(IDisputes.TooLate.selector);
        disputes.judge(asked, true, ROOT, SOON, signed);
        disputes.conclude(asked);
        expectStatus(id, Status.NoVerdict);
        expectCredits(payer, 3 * VERDICT_FEE, 0);
        vm.assertEq(stakeOf(operator), STAKE, "stake");
    }

    function test_a_verdict_takes_more_for_a_dear_receipt_and_never_more_than_the_stake() public {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 1, 1, 0);
        signed.receipt.amount = 300_000;
        signed = signReceipt(signed.receipt);
        (bytes32 id, Challenge memory asked) = ask(subject, signed, 1, 1);
        disputes.answer(asked, TraceBuilder.open(trace, 1, 1));
        approveEscalation();
        vm.prank(payer);
        disputes.escalate(asked);
        disputes.judge(asked, true, ROOT, SOON, votes(id, true, SOON));
        vm.assertEq(stakeOf(operator), STAKE - 300_000_000, "1,000 times the receipt");
        (subject, trace, signed) = served(0, 1, 1, 0);
        signed.receipt.amount = 10 ** 12;
        signed = signReceipt(signed.receipt);
        (id, asked) = ask(subject, signed, 1, 1);
        disputes.answer(asked, TraceBuilder.open(trace, 1, 1));
        approveEscalation();
        vm.prank(payer);
        disputes.escalate(asked);
        disputes.judge(asked, true, ROOT, SOON, votes(id, true, SOON));
        vm.assertEq(stakeOf(operator), 0, "the stake");
    }

    /// @dev A dear verdict leaves three units of a million. Of the next one the members take all.
    function test_what_members_take_is_no_reward_and_no_more_than_the_slash() public {
        for (uint256 i = 0; i < 2; ++i) {
            (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) =
                served(0, 1, 1, 0);
            signed.receipt.amount = i == 0 ? 997_000 : AMOUNT;
            signed = signReceipt(signed.receipt);
            (bytes32 id, Challenge memory asked) = ask(subject, signed, 1, 1);
            disputes.answer(asked, TraceBuilder.open(trace, 1, 1));
            approveEscalation();
            vm.prank(payer);
            disputes.escalate(asked);
            (uint256 before,) = disputes.creditsOf(payer);
            if (i == 1) challenged();
            disputes.judge(asked, true, ROOT, SOON, votes(id, true, SOON));
            (uint256 credited,) = disputes.creditsOf(payer);
            uint256 reward = i == 0 ? 20 * PROVING_COST : 0;
            vm.assertEq(credited - before, 3 * VERDICT_FEE + reward, "credited");
            vm.assertEq(stakeOf(operator), i == 0 ? 3_000_000 : 2_000_000, "stake");
        }
        expectCredits(vm.addr(memberKeys[0]), VERDICT_FEE + 500_000, 0);
        vm.expectRevert();
        disputes.endReward(1);
    }

    function test_an_escalation_comes_until_the_last_second() public {
        (bytes32 id, Challenge memory asked, OpenedLeaf memory leaf) = challenged();
        disputes.answer(asked, leaf);
        approveEscalation();
        uint64 latest = disputes.getChallenge(id).answerBy + 12 hours;
        vm.warp(latest + 1);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.TooLate.selector, latest, latest + 1));
        vm.prank(payer);
        disputes.escalate(asked);
        vm.warp(latest);
        vm.prank(payer);
        disputes.escalate(asked);
        expectStatus(id, Status.Escalated);
    }

    function test_members_of_a_worker_without_stake_get_what_there_is() public {
        (bytes32 id, Challenge memory asked) = _escalated();
        convict();
        disputes.judge(asked, true, ROOT, SOON, votes(id, true, SOON));
        expectCredits(vm.addr(memberKeys[0]), 0, 0);
        expectCredits(payer, 3 * VERDICT_FEE, 0);
        disputes.endReward(1);
        vm.assertEq(disputes.lost(), 20 * PROVING_COST, "the other challenge was upheld");
    }

    function test_a_verdict_needs_the_threshold_of_different_members() public {
        (bytes32 id, Challenge memory asked) = _escalated();
        bytes[] memory one = new bytes[](1);
        one[0] = vote(memberKeys[0], Verdict(id, true, ROOT, SOON));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.WrongNumberOfVotes.selector, 1, 2));
        disputes.judge(asked, true, ROOT, SOON, one);
        bytes[] memory two = votes(id, true, SOON);
        two[1] = two[0];
        vm.expectPartialRevert(IDisputes.NotOrdered.selector);
        disputes.judge(asked, true, ROOT, SOON, two);
        two[1] = vote(STRANGER_KEY, Verdict(id, true, ROOT, SOON));
        vm.expectPartialRevert(IDisputes.NotAMember.selector);
        disputes.judge(asked, true, ROOT, SOON, two);
        two = votes(id, true, SOON);
        vm.expectPartialRevert(IDisputes.NotAMember.selector);
        disputes.judge(asked, false, ROOT, SOON, two);
        two = votes(id, true, uint64(block.timestamp - 1));
        vm.expectPartialRevert(IDisputes.TooLate.selector);
        disputes.judge(asked, true, ROOT, uint64(block.timestamp - 1), two);
    }

    function test_only_an_answered_step_is_escalated_by_its_challenger_in_time() public {
        (bytes32 id, Challenge memory asked, OpenedLeaf memory leaf) = challenged();
        approveEscalation();
        vm.expectRevert(abi.encodeWithSelector(IDisputes.WrongStatus.selector, id, Status.Open));
        vm.prank(payer);
        disputes.escalate(asked);
        disputes.answer(asked, leaf);
        vm.expectPartialRevert(IDisputes.NotChallenger.selector);
        disputes.escalate(asked);
        later(DAY + 12 hours + 1);
        vm.expectPartialRevert(IDisputes.TooLate.selector);
        vm.prank(payer);
        disputes.escalate(asked);
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 1, 1, 0);
        (, asked) = ask(subject, signed, 0, 1);
        disputes.answer(asked, TraceBuilder.open(trace, 0, 1));
        vm.expectPartialRevert(IDisputes.BadLeaf.selector);
        vm.prank(payer);
        disputes.escalate(asked);
    }

    function test_without_a_committee_nothing_is_escalated() public {
        delete memberKeys;
        disputes = newDisputes(_withoutCommittee());
        registry = disputes.registry();
        stakeFor(OPERATOR_KEY, STAKE);
        (, Challenge memory asked, OpenedLeaf memory leaf) = challenged();
        disputes.answer(asked, leaf);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NoCommittee.selector));
        vm.prank(payer);
        disputes.escalate(asked);
    }

    function _withoutCommittee() private view returns (DisputeTerms memory t) {
        t = terms();
        t.threshold = 0;
    }

    function test_two_verdicts_of_one_member_are_shown() public {
        (bytes32 id,) = _escalated();
        bytes[2] memory signed = [
            vote(memberKeys[2], Verdict(id, true, ROOT, SOON)),
            vote(memberKeys[2], Verdict(id, false, ROOT, SOON))
        ];
        vm.expectEmit(address(disputes));
        emit IDisputes.MemberContradicted(vm.addr(memberKeys[2]), id);
        disputes.showContradiction(id, [true, false], [ROOT, ROOT], [SOON, SOON], signed);
        vm.expectPartialRevert(IDisputes.NotContradictory.selector);
        disputes.showContradiction(id, [true, true], [ROOT, ROOT], [SOON, SOON], [signed[0], signed[0]]);
        signed[1] = vote(memberKeys[1], Verdict(id, false, ROOT, SOON));
        vm.expectPartialRevert(IDisputes.NotContradictory.selector);
        disputes.showContradiction(id, [true, false], [ROOT, ROOT], [SOON, SOON], signed);
    }

    // ------------------------------------------------------------------ payouts

    function test_coins_that_are_refused_stay_credited() public {
        payer = address(token);
        vm.deal(payer, 1 ether);
        (bytes32 id, Challenge memory asked,) = challenged();
        uint96 bond = disputes.getChallenge(id).bond;
        later(DAY + 1);
        disputes.conclude(asked);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.CoinsRefused.selector, payer));
        disputes.pushCredits(payer);
        expectCredits(payer, 0, bond);
    }

    function test_a_payer_that_calls_again_while_it_is_paid_gets_nothing() public {
        payer = address(new Reentering(disputes));
        vm.deal(payer, 1 ether);
        (bytes32 id, Challenge memory asked,) = challenged();
        challenged();
        uint96 bond = disputes.getChallenge(id).bond;
        later(DAY + 1);
        disputes.conclude(asked);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.CoinsRefused.selector, payer));
        disputes.pushCredits(payer);
        expectCredits(payer, 0, bond);
        vm.assertEq(address(disputes).balance, 2 * uint256(bond), "coins");
    }

    function test_a_receiver_that_takes_no_coins_gets_its_tokens() public {
        payer = address(token);
        vm.deal(payer, 1 ether);
        (bytes32 id, Challenge memory asked, OpenedLeaf memory leaf) = challenged();
        disputes.answer(asked, leaf);
        approveEscalation();
        vm.prank(payer);
        disputes.escalate(asked);
        disputes.judge(asked, true, ROOT, SOON, votes(id, true, SOON));
        (uint256 tokens, uint256 coins) = disputes.creditsOf(payer);
        vm.assertEq(coins, 0, "coins");
        disputes.pushCredits(payer);
        vm.assertEq(token.balanceOf(payer), tokens, "tokens");
    }

    function test_nothing_is_called_while_a_payer_is_paid() public {
        Calling caller = new Calling(address(disputes));
        payer = address(caller);
        vm.deal(payer, 1 ether);
        (, Challenge memory asked, OpenedLeaf memory leaf) = challenged();
        bytes[7] memory calls = [
            abi.encodeCall(IDisputes.prove, ("")),
            abi.encodeCall(IDisputes.challenge, ("")),
            abi.encodeCall(IDisputes.answer, (asked, leaf)),
            abi.encodeCall(IDisputes.conclude, (asked)),
            abi.encodeCall(IDisputes.escalate, (asked)),
            abi.encodeCall(IDisputes.judge, (asked, true, ROOT, SOON, new bytes[](0))),
            abi.encodeCall(IDisputes.pushCredits, (payer))
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            (, Challenge memory silent,) = challenged();
            vm.warp(disputes.getChallenge(disputes.challengeId(silent)).answerBy + 1);
            disputes.conclude(silent);
            caller.arm(calls[i]);
            disputes.pushCredits(payer);
            vm.assertEq(
                bytes32(caller.reason()),
                bytes32(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector),
                "refused"
            );
        }
    }
}
