// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Status} from "../../src/interfaces/IDisputes.sol";
import {Challenge, JobOfChannel, SignedReceipt} from "../../src/interfaces/IEvidenceVerifier.sol";
import {Receipt} from "../../src/libraries/PieceworkTypes.sol";
import {OpenedLeaf} from "../../src/libraries/TraceLeaves.sol";
import {DisputesBase} from "./DisputesBase.sol";
import {Trace, TraceBuilder} from "./TraceBuilder.sol";

/// @notice What challenges, silences, proofs and verdicts take, for any amount, stake and time. Before a release each
/// runs 100,000 times (`tools/check.sh deep`), a sequence of challenges 3,000 times.
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

    /// @dev Places of the number of questions and of the lanes in the storage of Disputes.
    uint256 private constant _ASKED = 7;
    uint256 private constant _LANES = 8;

    function _store(uint256 asked, uint64[8] memory lanes) private {
        uint256 place = uint256(keccak256(abi.encode(operator, _LANES)));
        for (uint256 word = 0; word < 2; ++word) {
            uint256 packed = 0;
            for (uint256 i = 4; i > 0; --i) {
                packed = packed << 64 | lanes[4 * word + i - 1];
            }
            vm.store(address(disputes), bytes32(place + word), bytes32(packed));
        }
        vm.store(address(disputes), keccak256(abi.encode(operator, _ASKED)), bytes32(asked));
    }

    /// @dev One challenge: it starts when its lane is free, within seven days. It touches no other lane and no stake.
    function _startsAsItsLaneSays(uint256 asked, uint64[8] memory lanes) private {
        _store(asked, lanes);
        (bytes32 id,,) = _ask(AMOUNT, 1, ALL_STEP);
        uint256 lane = asked % 8;
        uint256 starts = lanes[lane] > block.timestamp ? lanes[lane] : block.timestamp;
        if (starts > block.timestamp + 7 * DAY) starts = block.timestamp + 7 * DAY;
        vm.assertEq(disputes.getChallenge(id).answerBy, starts + DAY, "answerBy");
        vm.assertEq(registry.getWorker(operator).frozenUntil, starts + 2 * DAY + 1, "frozen");
        lanes[lane] = uint64(starts + DAY);
        uint256 place = uint256(keccak256(abi.encode(operator, _LANES)));
        for (uint256 i = 0; i < 8; ++i) {
            uint256 word = uint256(vm.load(address(disputes), bytes32(place + i / 4)));
            vm.assertEq(uint64(word >> (64 * (i % 4))), lanes[i], "lane");
        }
        vm.assertEq(stakeOf(operator), STAKE, "stake");
        vm.assertEq(address(disputes).balance, disputes.getChallenge(id).bond, "coins");
        expectCredits(payer, 0, 0);
        expectCredits(operator, 0, 0);
    }

    /// forge-config: deep.fuzz.runs = 100000
    function testFuzz_a_challenge_takes_its_lane_and_touches_no_other(
        uint256 asked,
        uint64[8] memory lanes,
        uint256 near
    ) external {
        asked = bound(asked, 0, type(uint256).max - 1);
        // Most windows of a real line are near. Whatever else stands there must do no harm.
        for (uint256 i = 0; i < 8; ++i) {
            if (near >> i & 1 == 1) lanes[i] = uint64(block.timestamp - DAY + lanes[i] % (10 * DAY));
        }
        _startsAsItsLaneSays(asked, lanes);
    }

    struct Window {
        Challenge asked;
        OpenedLeaf leaf;
        uint64 answerBy;
        bool open;
    }

    /// @dev Open windows that run at a time.
    function _running(Window[] memory windows, uint256 count, uint256 time)
        private
        pure
        returns (uint256 sum)
    {
        for (uint256 i = 0; i < count; ++i) {
            Window memory w = windows[i];
            if (w.open && w.answerBy - DAY <= time && time < w.answerBy) ++sum;
        }
    }

    /// @dev Questions, answers to any of them and time, in any order. Too few questions for a line of seven days.
    /// forge-config: default.fuzz.runs = 48
    /// forge-config: ci.fuzz.runs = 100
    /// forge-config: deep.fuzz.runs = 3000
    function testFuzz_eight_windows_run_at_a_time_however_they_are_answered(uint256 moves) external {
        Window[] memory windows = new Window[](40);
        uint256 count = 0;
        for (uint256 move = 0; move < 40; ++move) {
            moves = uint256(keccak256(abi.encode(moves)));
            Window memory other = windows[count == 0 ? 0 : (moves >> 8) % count];
            if (moves % 3 == 0 && other.open && block.timestamp <= other.answerBy) {
                disputes.answer(other.asked, other.leaf);
                other.open = false;
            } else {
                Window memory made = windows[count];
                bytes32 id;
                (id, made.asked, made.leaf) = _ask(AMOUNT, 1, 1);
                (made.answerBy, made.open) = (disputes.getChallenge(id).answerBy, true);
                ++count;
            }
            if ((moves >> 64) % 4 == 0) later(uint64((moves >> 72) % (DAY / 2)));
            vm.assertTrue(_running(windows, count, block.timestamp) <= 8, "now");
            for (uint256 i = 0; i < count; ++i) {
                uint256 start = windows[i].answerBy - DAY;
                if (start > block.timestamp) {
                    vm.assertTrue(_running(windows, count, start) <= 8, "when another window starts");
                }
            }
        }
    }

    /// @dev What yices 2.6.4 gave as a counterexample to check_challenge (PROPERTIES.md). It is none.
    function test_the_counterexample_of_yices_to_a_challenge_is_none() external {
        vm.warp(30 days);
        uint64[8] memory lanes;
        lanes[0] = 3_145_728;
        _startsAsItsLaneSays(0, lanes);
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
