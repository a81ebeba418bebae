// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {DisputeTerms, IDisputes} from "../../src/interfaces/IDisputes.sol";
import {
    Challenge,
    Fault,
    IEvidenceVerifier,
    JobOfChannel,
    SignedAcceptance,
    SignedReceipt
} from "../../src/interfaces/IEvidenceVerifier.sol";
import {IWorkerRegistry} from "../../src/interfaces/IWorkerRegistry.sol";
import {Offer, OfferTypes} from "../../src/libraries/OfferTypes.sol";
import {PieceworkTypes, Receipt} from "../../src/libraries/PieceworkTypes.sol";
import {OfferOpening, ReceiptRules} from "../../src/libraries/ReceiptRules.sol";
import {DisputesBase} from "./DisputesBase.sol";
import {OfferBuilder} from "./OfferBuilder.sol";
import {OpenedLeaf} from "../../src/libraries/TraceLeaves.sol";
import {Trace} from "./TraceBuilder.sol";

/// @notice What one transaction proves, and who is paid for it.
contract ProofsTest is DisputesBase {
    uint128 private constant REWARD = 20 * PROVING_COST;
    OpenedLeaf private _leaf;

    function _expectConviction(bytes memory proof, Fault fault) private {
        uint256 before = registry.forfeited();
        vm.expectEmit(address(disputes));
        emit IDisputes.FaultProved(operator, payer, fault, STAKE);
        vm.prank(stranger);
        disputes.prove(proof);
        vm.assertEq(stakeOf(operator), 0, "stake");
        vm.assertTrue(!registry.isActive(operator), "inactive");
        vm.assertEq(registry.forfeited() - before, STAKE - REWARD, "forfeited");
        expectCredits(payer, REWARD, 0);
        expectCredits(stranger, 0, 0);
    }

    function _expectNothing(bytes memory proof, bytes4 reason) private {
        vm.expectPartialRevert(reason);
        disputes.prove(proof);
        vm.assertEq(stakeOf(operator), STAKE, "stake");
    }

    // ------------------------------------------------------------------ the contract itself

    function test_the_registry_is_the_frozen_one_and_belongs_to_the_disputes() public view {
        bytes memory code = registryCode(address(token), 1_000_000, 7 days);
        bytes32 hash = keccak256(abi.encodePacked(hex"ff", address(disputes), bytes32(0), keccak256(code)));
        vm.assertEq(address(registry), address(uint160(uint256(hash))), "address");
        vm.assertEq(registry.slasher(), address(disputes), "slasher");
    }

    function test_windows_that_do_not_fit_the_unbonding_delay_are_refused() public {
        DisputeTerms memory t = terms();
        t.unbondingDelay = 6 days;
        vm.expectRevert(abi.encodeWithSelector(IDisputes.WindowsDoNotFit.selector, 6 days, 6 days));
        newDisputes(t);
        uint256 longest = disputes.JOB_SECONDS() + disputes.CHALLENGE_SECONDS() + disputes.ANSWER_SECONDS()
            + disputes.VERDICT_SECONDS();
        vm.assertTrue(longest < registry.unbondingDelay(), "fits");
        vm.assertTrue(disputes.ESCALATE_SECONDS() < disputes.VERDICT_SECONDS(), "a verdict has time");
    }

    function test_terms_and_committees_that_make_no_sense_are_refused() public {
        DisputeTerms memory t = terms();
        t.provingCost = 0;
        vm.expectPartialRevert(IDisputes.BadTerms.selector);
        newDisputes(t);
        t = terms();
        t.verifier = IEvidenceVerifier(stranger);
        vm.expectPartialRevert(IDisputes.BadTerms.selector);
        newDisputes(t);
        t = terms();
        t.threshold = 1;
        vm.expectPartialRevert(IDisputes.BadCommittee.selector);
        newDisputes(t);
        t.threshold = 4;
        vm.expectPartialRevert(IDisputes.BadCommittee.selector);
        newDisputes(t);
        t = terms();
        t.committee[1] = t.committee[0];
        vm.expectPartialRevert(IDisputes.BadCommittee.selector);
        newDisputes(t);
    }

    function test_costs_of_96_bits_and_committees_of_32_are_the_most() public {
        DisputeTerms memory t = terms();
        (t.provingCost, t.verdictFee) = (type(uint96).max, type(uint96).max);
        vm.assertEq(newDisputes(t).provingCost(), type(uint96).max, "the most");
        t.provingCost += 1;
        vm.expectPartialRevert(IDisputes.BadTerms.selector);
        newDisputes(t);
        (t.provingCost, t.verdictFee) = (PROVING_COST, uint128(type(uint96).max) + 1);
        vm.expectPartialRevert(IDisputes.BadTerms.selector);
        newDisputes(t);
        t = terms();
        t.threshold = 17;
        t.committee = _members(32);
        vm.assertEq(newDisputes(t).threshold(), 17, "32 members");
        t.committee = _members(33);
        vm.expectPartialRevert(IDisputes.BadCommittee.selector);
        newDisputes(t);
    }

    function _members(uint256 count) private pure returns (address[] memory members) {
        members = new address[](count);
        for (uint160 i = 0; i < count; ++i) {
            members[i] = address(i + 1);
        }
    }

    function test_a_verifier_needs_an_escrow() public {
        bytes memory code =
            bytes.concat(vm.getCode("EvidenceVerifier.sol:EvidenceVerifier"), abi.encode(stranger));
        address made;
        assembly ("memory-safe") {
            made := create(0, add(code, 0x20), mload(code))
        }
        vm.assertEq(made, address(0), "none");
    }

    function test_what_is_no_proof_proves_nothing() public {
        (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 1, 0);
        bytes memory question = abi.encodeCall(IEvidenceVerifier.ask, (payer, subject, signed, 0, 1));
        _expectNothing(question, IDisputes.NotAProof.selector);
        _expectNothing(abi.encodeCall(IEvidenceVerifier.escrow, ()), IDisputes.NotAProof.selector);
    }

    // ------------------------------------------------------------------ equivocation

    function test_two_receipts_for_one_canvas_take_the_whole_stake() public {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 1, 2, 0);
        Receipt memory other = receiptOf(subject, trace, 2);
        _expectConviction(equivocation(subject, signed, signReceipt(other)), Fault.Equivocation);
    }

    function test_one_receipt_twice_is_no_equivocation() public {
        (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 2, 0);
        _expectNothing(equivocation(subject, signed, signed), IEvidenceVerifier.NotContradictory.selector);
    }

    function test_receipts_of_two_canvases_are_no_equivocation() public {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 0, 2, 0);
        Receipt memory next = receiptOf(subject, trace, 1);
        next.canvas = 1;
        _expectNothing(
            equivocation(subject, signed, signReceipt(next)), IEvidenceVerifier.NotContradictory.selector
        );
    }

    function test_receipts_of_another_job_or_signer_prove_nothing() public {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 1, 2, 0);
        Receipt memory other = receiptOf(subject, trace, 2);
        SignedReceipt memory forged =
            SignedReceipt(other, signHash(STRANGER_KEY, PieceworkTypes.hashReceipt(other)));
        _expectNothing(equivocation(subject, signed, forged), IEvidenceVerifier.NotSignedBy.selector);
        JobOfChannel memory elsewhere = newJob(0);
        _expectNothing(
            equivocation(elsewhere, signed, signReceipt(other)), IEvidenceVerifier.NotTheJob.selector
        );
        elsewhere.job = subject.job;
        _expectNothing(
            equivocation(elsewhere, signed, signReceipt(other)), IEvidenceVerifier.NotTheJob.selector
        );
    }

    // ------------------------------------------------------------------ chain, price, acceptances

    function _pair()
        private
        returns (JobOfChannel memory subject, Receipt memory first, Receipt memory next)
    {
        Trace memory trace;
        SignedReceipt memory signed;
        (subject, trace, signed) = served(0, 0, 2, 0);
        first = signed.receipt;
        next = receiptOf(subject, trace, 1);
        next.canvas = 1;
        next.previous = digestOf(PieceworkTypes.hashReceipt(first));
        next.totalUnits = first.totalUnits + next.units;
        next.totalSteps = first.totalSteps + next.steps;
        next.totalAmount = first.totalAmount + next.amount;
    }

    function _chain(JobOfChannel memory subject, Receipt memory first, Receipt memory next)
        private
        view
        returns (bytes memory)
    {
        return abi.encodeCall(
            IEvidenceVerifier.proveBrokenChain, (subject, signReceipt(first), signReceipt(next))
        );
    }

    function test_a_chain_that_holds_is_not_broken() public {
        (JobOfChannel memory subject, Receipt memory first, Receipt memory next) = _pair();
        _expectNothing(_chain(subject, first, next), IEvidenceVerifier.NotBroken.selector);
        _expectNothing(_chain(subject, next, first), IEvidenceVerifier.NotContradictory.selector);
        _expectNothing(
            abi.encodeCall(IEvidenceVerifier.proveBrokenBeginning, (subject, signReceipt(first))),
            IEvidenceVerifier.NotBroken.selector
        );
        _expectNothing(
            abi.encodeCall(IEvidenceVerifier.proveBrokenBeginning, (subject, signReceipt(next))),
            IEvidenceVerifier.NotBroken.selector
        );
    }

    function test_every_link_of_a_chain_is_held() public {
        (JobOfChannel memory subject, Receipt memory first, Receipt memory next) = _pair();
        for (uint256 i = 0; i < 6; ++i) {
            (Receipt memory one, Receipt memory two) = (abi.decode(abi.encode(first), (Receipt)), next);
            two = abi.decode(abi.encode(next), (Receipt));
            if (i == 0) two.previous = bytes32(uint256(1));
            if (i == 1) ++two.totalUnits;
            if (i == 2) ++two.totalSteps;
            if (i == 3) ++two.totalAmount;
            if (i == 4) ++two.totalPromptTokens;
            if (i == 5) {
                one.finish = 1;
                two.previous = digestOf(PieceworkTypes.hashReceipt(one));
            }
            uint256 id = vm.snapshotState();
            _expectConviction(_chain(subject, one, two), Fault.BrokenChain);
            vm.revertToState(id);
        }
    }

    function test_every_beginning_of_a_chain_is_held() public {
        (JobOfChannel memory subject, Receipt memory first,) = _pair();
        for (uint256 i = 0; i < 4; ++i) {
            Receipt memory bad = abi.decode(abi.encode(first), (Receipt));
            if (i == 0) bad.previous = bytes32(uint256(1));
            if (i == 1) ++bad.totalUnits;
            if (i == 2) ++bad.totalSteps;
            if (i == 3) ++bad.totalAmount;
            bytes memory proof =
                abi.encodeCall(IEvidenceVerifier.proveBrokenBeginning, (subject, signReceipt(bad)));
            uint256 id = vm.snapshotState();
            _expectConviction(proof, Fault.BrokenChain);
            vm.revertToState(id);
        }
    }

    function test_more_steps_or_money_than_the_job_allows_takes_the_stake() public {
        (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 4, 0);
        Receipt memory r = signed.receipt;
        _expectNothing(
            abi.encodeCall(IEvidenceVerifier.proveExcess, (subject, signed)),
            IEvidenceVerifier.NotBroken.selector
        );
        uint256 id = vm.snapshotState();
        r.steps = 5;
        _expectConviction(
            abi.encodeCall(IEvidenceVerifier.proveExcess, (subject, signReceipt(r))), Fault.Overcharge
        );
        vm.revertToState(id);
        (r.steps, r.totalAmount) = (4, 100 * AMOUNT);
        _expectNothing(
            abi.encodeCall(IEvidenceVerifier.proveExcess, (subject, signReceipt(r))),
            IEvidenceVerifier.NotBroken.selector
        );
        r.totalAmount += 1;
        _expectConviction(
            abi.encodeCall(IEvidenceVerifier.proveExcess, (subject, signReceipt(r))), Fault.Overcharge
        );
    }

    function test_two_acceptances_with_other_prompt_tokens_take_the_stake() public {
        JobOfChannel memory subject = newJob(0);
        SignedAcceptance memory one = acceptance(subject, 10, 1);
        _expectNothing(
            abi.encodeCall(IEvidenceVerifier.proveAcceptances, (subject, one, acceptance(subject, 10, 2))),
            IEvidenceVerifier.NotContradictory.selector
        );
        _expectConviction(
            abi.encodeCall(IEvidenceVerifier.proveAcceptances, (subject, one, acceptance(subject, 11, 1))),
            Fault.Acceptances
        );
    }

    // ------------------------------------------------------------------ price

    function _offer() private view returns (Offer memory) {
        return OfferBuilder.offer(operator, receiver, 1, 1_000_000);
    }

    function test_more_than_the_offers_price_takes_the_stake() public {
        Offer memory o = _offer();
        JobOfChannel memory subject = newJob(0);
        subject.job.offer = digestOf(OfferTypes.hashOffer(o));
        subject.job.entry = 1;
        Receipt memory r =
            Receipt(jobId(subject), 0, bytes32(0), bytes32(0), 2, 5, 0, 1, 10, 5, 2, 0, jobId(subject));
        // 10 prompt tokens and 5 tokens at 1 each, 2 steps at 1,000 each.
        r.totalAmount = 2015;
        bytes memory honest = abi.encodeCall(
            IEvidenceVerifier.proveOvercharge, (subject, signReceipt(r), OfferBuilder.opening(o, 1))
        );
        _expectNothing(honest, IEvidenceVerifier.NotBroken.selector);
        _expectNothing(
            abi.encodeCall(
                IEvidenceVerifier.proveOvercharge, (subject, signReceipt(r), OfferBuilder.opening(o, 0))
            ),
            ReceiptRules.NotTheOffer.selector
        );
        JobOfChannel memory beyond = newJob(0);
        (beyond.job.offer, beyond.job.entry) = (subject.job.offer, 2);
        Receipt memory dear = r;
        dear.job = jobId(beyond);
        _expectNothing(
            abi.encodeCall(
                IEvidenceVerifier.proveOvercharge, (beyond, signReceipt(dear), OfferBuilder.opening(o, 1))
            ),
            ReceiptRules.NotTheOffer.selector
        );
        r.job = jobId(subject);
        OfferOpening memory other = OfferBuilder.opening(o, 1);
        other.words[3] = bytes32(uint256(8));
        _expectNothing(
            abi.encodeCall(IEvidenceVerifier.proveOvercharge, (subject, signReceipt(r), other)),
            ReceiptRules.NotTheOffer.selector
        );
        r.totalAmount = 2016;
        _expectConviction(
            abi.encodeCall(
                IEvidenceVerifier.proveOvercharge, (subject, signReceipt(r), OfferBuilder.opening(o, 1))
            ),
            Fault.Overcharge
        );
    }

    // ------------------------------------------------------------------ payouts

    function test_a_reward_is_the_payers_whoever_sends_the_proof() public {
        convict();
        expectCredits(payer, REWARD, 0);
        vm.prank(stranger);
        disputes.pushCredits(payer);
        vm.assertEq(token.balanceOf(payer), REWARD, "sent to the payer");
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NothingToPush.selector, payer));
        disputes.pushCredits(payer);
        vm.assertEq(registry.rewardOf(address(disputes)), 0, "nothing left");
        vm.assertEq(token.balanceOf(address(disputes)), 0, "nothing held");
    }

    function test_a_small_stake_gives_a_tenth() public {
        stakeFor(0x5A11, 1_000_000);
        operator = vm.addr(0x5A11);
        JobOfChannel memory subject = newJob(0);
        Receipt memory r;
        (r.job, r.steps) = (jobId(subject), 99);
        SignedReceipt memory signed = SignedReceipt(r, signHash(0x5A11, PieceworkTypes.hashReceipt(r)));
        disputes.prove(abi.encodeCall(IEvidenceVerifier.proveExcess, (subject, signed)));
        expectCredits(payer, 100_000, 0);
    }

    function test_reporting_oneself_gives_back_at_most_twenty_costs() public {
        payer = address(0x5E1F);
        convict();
        vm.assertEq(stakeOf(operator), 0, "the stake is gone");
        expectCredits(payer, REWARD, 0);
        vm.assertTrue(uint256(REWARD) * 10 <= STAKE, "and most of it is nobody's");
    }

    function test_a_stake_is_taken_once() public {
        convict();
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 1, 1, 0);
        bytes memory proof = equivocation(subject, signed, signReceipt(receiptOf(subject, trace, 2)));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NothingAtStake.selector, operator));
        disputes.prove(proof);
    }

    function test_the_stake_of_an_unbonding_worker_is_taken() public {
        vm.prank(operator);
        registry.requestUnbond(operator);
        convict();
        vm.assertEq(stakeOf(operator), 0, "stake");
    }

    function test_a_reward_waits_for_other_challenges_and_is_paid_when_they_fail() public {
        (, Challenge memory asked,) = _openAndConvict();
        vm.expectRevert(abi.encodeWithSelector(IDisputes.RewardStillWaits.selector, 1, 1));
        disputes.endReward(1);
        disputes.answer(asked, _leaf);
        disputes.endReward(1);
        expectCredits(payer, REWARD, 0);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NoReward.selector, 1));
        disputes.endReward(1);
    }

    function test_a_reward_is_lost_when_another_challenge_is_upheld() public {
        (, Challenge memory asked, uint96 bond) = _openAndConvict();
        later(DAY + 1);
        disputes.conclude(asked);
        disputes.endReward(1);
        expectCredits(payer, 0, bond);
        vm.assertEq(disputes.lost(), REWARD, "counted");
        vm.assertEq(registry.rewardOf(address(disputes)), REWARD, "and claimed by nobody");
    }

    function _openAndConvict() private returns (bytes32 id, Challenge memory asked, uint96 bond) {
        (id, asked, _leaf) = challenged();
        bond = disputes.getChallenge(id).bond;
        convict();
        expectCredits(payer, 0, 0);
    }

    function test_no_challenge_follows_a_conviction() public {
        convict();
        token.mint(address(this), 5);
        token.approve(address(registry), 5);
        registry.addStake(operator, 5);
        (JobOfChannel memory subject,, SignedReceipt memory signed) = served(0, 1, 2, 0);
        bytes memory question = abi.encodeCall(IEvidenceVerifier.ask, (payer, subject, signed, 0, 1));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NothingAtStake.selector, operator));
        vm.prank(payer);
        disputes.challenge{value: 1 ether}(question);
    }

    /// @dev Nobody may challenge it, so it must not serve.
    function test_a_convicted_worker_stays_inactive_whatever_it_stakes_or_answers() public {
        (, Challenge memory asked, OpenedLeaf memory leaf) = challenged();
        later(DAY + 1);
        disputes.conclude(asked);
        convict();
        token.mint(address(this), STAKE);
        token.approve(address(registry), STAKE);
        registry.addStake(operator, STAKE);
        vm.assertTrue(!registry.isActive(operator), "after more stake");
        disputes.answer(asked, leaf);
        vm.assertTrue(!registry.isActive(operator), "after a late answer");
    }
}
