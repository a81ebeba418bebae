// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Status} from "../../src/interfaces/IDisputes.sol";
import {Challenge, JobOfChannel, SignedReceipt} from "../../src/interfaces/IEvidenceVerifier.sol";
import {Receipt} from "../../src/libraries/PieceworkTypes.sol";
import {OpenedLeaf} from "../../src/libraries/TraceLeaves.sol";
import {DisputesBase} from "./DisputesBase.sol";
import {Trace, TraceBuilder} from "./TraceBuilder.sol";

/// @notice What challenges, silences, proofs and verdicts take, for any amount, stake and time. Before a release each
/// runs 100,000 times (`tools/check.sh deep`).
contract DisputesFuzzTest is DisputesBase {
    /// @dev Any stake of at least the fixture's.
    function _stake(uint128 more) private returns (uint128 stake) {
        more = uint128(bound(more, 1, 1e20));
        token.mint(address(this), more);
        token.approve(address(registry), more);
        registry.addStake(operator, more);
        return STAKE + more;
    }

    /// @dev A challenge to open a leaf of a receipt that charged `amount`.
    function _ask(uint128 amount, uint32 leaf, uint8 fields)
        private
        returns (bytes32 id, Challenge memory asked, OpenedLeaf memory opened)
    {
        JobOfChannel memory subject = newJob(0);
        Trace memory trace = TraceBuilder.honest(subject.job, 0, 2, 3);
        Receipt memory receipt = receiptOf(subject, trace, 1);
        receipt.amount = amount;
        SignedReceipt memory signed = signReceipt(receipt);
        (id, asked) = ask(subject, signed, leaf, fields);
        opened = TraceBuilder.open(trace, leaf, fields);
    }

    /// forge-config: deep.fuzz.runs = 100000
    function testFuzz_a_silence_takes_at_most_a_tenth_and_pays_nobody(
        uint128 more,
        uint128 amount,
        uint64 wait
    ) external {
        uint128 stake = _stake(more);
        (bytes32 id, Challenge memory asked,) = _ask(uint128(bound(amount, 0, 1e24)), 1, ALL_STEP);
        uint96 bond = disputes.getChallenge(id).bond;
        later(DAY + 1 + uint64(bound(wait, 0, 30 days)));
        vm.prank(stranger);
        disputes.conclude(asked);
        uint256 due = 1000 * uint256(asked.amount) + 20 * PROVING_COST;
        uint256 taken = stake - stakeOf(operator);
        vm.assertEq(taken, due < stake / 10 ? due : stake / 10, "taken");
        vm.assertEq(registry.forfeited(), taken, "forfeited");
        expectCredits(payer, 0, bond);
        expectCredits(operator, 0, 0);
        expectCredits(stranger, 0, 0);
    }

    /// forge-config: deep.fuzz.runs = 100000
    function testFuzz_an_answer_in_time_takes_nothing(uint32 leaf, uint8 fields, uint64 wait) external {
        leaf = uint32(bound(leaf, 0, 2));
        fields = uint8(bound(fields, 1, leaf == 0 ? 0x3f : ALL_STEP));
        (bytes32 id, Challenge memory asked, OpenedLeaf memory opened) = _ask(AMOUNT, leaf, fields);
        uint96 bond = disputes.getChallenge(id).bond;
        later(uint64(bound(wait, 0, DAY)));
        vm.prank(stranger);
        disputes.answer(asked, opened);
        expectStatus(id, Status.Answered);
        vm.assertEq(stakeOf(operator), STAKE, "stake");
        expectCredits(operator, 0, bond);
        expectCredits(payer, 0, 0);
        expectCredits(stranger, 0, 0);
    }

    /// forge-config: deep.fuzz.runs = 100000
    function testFuzz_a_proof_takes_the_whole_stake_and_pays_a_tenth_at_most(uint128 more) external {
        uint128 stake = _stake(more);
        convict();
        uint256 reward = stake / 10 < 20 * PROVING_COST ? stake / 10 : 20 * PROVING_COST;
        vm.assertEq(stakeOf(operator), 0, "stake");
        vm.assertEq(registry.forfeited(), stake - reward, "forfeited");
        expectCredits(payer, reward, 0);
    }

    /// forge-config: deep.fuzz.runs = 100000
    function testFuzz_a_verdict_takes_what_it_may_and_no_more(bool guilty, uint128 more, uint128 amount)
        external
    {
        uint128 stake = _stake(more);
        (bytes32 id, Challenge memory asked, OpenedLeaf memory opened) =
            _ask(uint128(bound(amount, 0, 1e24)), 1, ALL_STEP);
        disputes.answer(asked, opened);
        approveEscalation();
        vm.prank(payer);
        disputes.escalate(asked);
        uint64 deadline = uint64(block.timestamp + DAY);
        disputes.judge(asked, guilty, ROOT, deadline, votes(id, guilty, deadline));
        uint256 most = 1000 * uint256(asked.amount);
        if (most < stake / 10) most = stake / 10;
        if (most > stake) most = stake;
        uint256 taken = stake - stakeOf(operator);
        vm.assertEq(taken, guilty ? most : 0, "taken");
        uint256 fees = guilty ? 2 * VERDICT_FEE : 0;
        (uint256 paid,) = disputes.creditsOf(payer);
        vm.assertTrue(paid <= (guilty ? 3 * VERDICT_FEE + 20 * PROVING_COST : 0), "the challenger");
        vm.assertEq(registry.forfeited() + registry.rewardOf(address(disputes)), taken, "accounted for");
        vm.assertTrue(!guilty || registry.rewardOf(address(disputes)) >= fees, "the members");
    }
}
