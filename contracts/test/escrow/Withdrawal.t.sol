// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IEscrow, SkipReason} from "../../src/interfaces/IEscrow.sol";
import {Channel} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";
import {KeyWallet} from "../utils/Wallets.sol";

contract WithdrawalTest is EscrowBase {
    function _request(Channel memory channel) private {
        vm.prank(payer);
        escrow.requestWithdrawal(channel, EVERYTHING, 0, SOON, "");
    }

    function _refuse(Channel memory channel, bytes memory reason) private {
        vm.expectRevert(reason);
        vm.prank(stranger);
        escrow.withdraw(channel);
    }

    function test_a_withdrawal_from_an_unknown_or_closed_channel_is_refused() public {
        Channel memory channel = channelOf(1);
        bytes32 id = escrow.channelId(channel);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.UnknownChannel.selector, id));
        _request(channel);
        _refuse(channel, abi.encodeWithSelector(IEscrow.UnknownChannel.selector, id));
        open(1);
        vm.prank(operator);
        escrow.close(unsigned(channel, 0), 0, "");
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ChannelIsClosed.selector, id));
        _request(channel);
        _refuse(channel, abi.encodeWithSelector(IEscrow.ChannelIsClosed.selector, id));
    }

    function test_a_request_after_its_deadline_is_refused() public {
        (Channel memory channel,) = open(1);
        uint64 past = uint64(block.timestamp) - 1;
        bytes memory signature = requestSignature(PAYER_KEY, channel, EVERYTHING, past);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.Expired.selector, past, block.timestamp));
        escrow.requestWithdrawal(channel, EVERYTHING, 0, past, signature);
    }

    function test_a_replayed_request_does_not_restart_the_clock() public {
        (Channel memory channel, bytes32 id) = open(1);
        bytes memory signature = requestSignature(PAYER_KEY, channel, EVERYTHING, SOON);
        escrow.requestWithdrawal(channel, EVERYTHING, 0, SOON, signature);
        uint64 requestedAt = escrow.getChannel(id).requestedAt;
        vm.warp(block.timestamp + DELAY - 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.WithdrawalAlreadyRequested.selector, id, requestedAt));
        escrow.requestWithdrawal(channel, EVERYTHING, 0, SOON, signature);
    }

    function test_a_request_by_anybody_else_is_refused() public {
        (Channel memory channel,) = open(1);
        bytes memory foreign = requestSignature(AUTHORIZER_KEY, channel, EVERYTHING, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, payer));
        vm.prank(authorizer);
        escrow.requestWithdrawal(channel, EVERYTHING, 0, SOON, foreign);
        bytes memory other = requestSignature(PAYER_KEY, channelOf(2), EVERYTHING, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, payer));
        escrow.requestWithdrawal(channel, EVERYTHING, 0, SOON, other);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, payer));
        vm.prank(operator);
        escrow.requestWithdrawal(channel, EVERYTHING, 0, SOON, "");
    }

    function test_the_payer_requests_without_a_signature() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.expectEmit(address(escrow));
        emit IEscrow.WithdrawalRequested(id, EVERYTHING, 0, uint64(block.timestamp) + DELAY);
        _request(channel);
        vm.assertEq(escrow.getChannel(id).requestedAt, block.timestamp, "requested at");
    }

    function test_anybody_relays_the_payers_request() public {
        (Channel memory channel, bytes32 id) = open(1);
        uint64 deadline = uint64(block.timestamp);
        bytes memory signature = requestSignature(PAYER_KEY, channel, EVERYTHING, deadline);
        vm.prank(stranger);
        escrow.requestWithdrawal(channel, EVERYTHING, 0, deadline, signature);
        vm.assertEq(escrow.getChannel(id).requestedAt, block.timestamp, "requested at");
    }

    function test_a_smart_account_requests_by_its_own_signature_rule() public {
        address wallet = address(new KeyWallet(payer));
        pool(wallet, POOLED);
        Channel memory channel = channelOf(1);
        channel.payer = wallet;
        vm.prank(wallet);
        escrow.fund(channel, DEPOSIT, 0, SOON, "");
        bytes memory foreign = requestSignature(STRANGER_KEY, channel, EVERYTHING, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, wallet));
        escrow.requestWithdrawal(channel, EVERYTHING, 0, SOON, foreign);
        escrow.requestWithdrawal(
            channel, EVERYTHING, 0, SOON, requestSignature(PAYER_KEY, channel, EVERYTHING, SOON)
        );
    }

    function test_a_withdrawal_without_a_request_is_refused() public {
        (Channel memory channel, bytes32 id) = open(1);
        _refuse(channel, abi.encodeWithSelector(IEscrow.WithdrawalNotRequested.selector, id));
    }

    function test_a_withdrawal_before_the_delay_is_over_is_refused() public {
        (Channel memory channel, bytes32 id) = open(1);
        uint64 due = uint64(block.timestamp) + DELAY;
        _request(channel);
        vm.warp(due - 1);
        _refuse(channel, abi.encodeWithSelector(IEscrow.WithdrawalTooEarly.selector, id, due, due - 1));
        vm.warp(due);
        escrow.withdraw(channel);
    }

    function test_the_worker_settles_inside_the_delay() public {
        (Channel memory channel, bytes32 id) = open(1);
        _request(channel);
        settleOne(claimOf(channel, 5, 1));
        vm.warp(block.timestamp + DELAY);
        escrow.withdraw(channel);
        expectState(id, DEPOSIT, 5, true);
        vm.assertEq(token.balanceOf(receiver), 5, "received");
        vm.assertEq(pooled(payer), POOLED - 5, "payer");
    }

    function test_anybody_returns_the_rest_to_the_payer() public {
        (Channel memory channel, bytes32 id) = open(1);
        _request(channel);
        vm.warp(block.timestamp + DELAY);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelClosed(id, payer, 0, DEPOSIT, 0);
        vm.prank(stranger);
        escrow.withdraw(channel);
        vm.assertEq(pooled(payer), POOLED, "payer");
        vm.assertEq(pooled(stranger), 0, "submitter");
    }

    function test_the_worker_may_still_settle_until_the_withdrawal_is_mined() public {
        (Channel memory channel,) = open(1);
        _request(channel);
        vm.warp(block.timestamp + 10 * DELAY);
        settleOne(claimOf(channel, 5, 1));
        vm.assertEq(token.balanceOf(receiver), 5, "received");
    }

    function test_a_withdrawn_channel_pays_no_more() public {
        (Channel memory channel,) = open(1);
        _request(channel);
        vm.warp(block.timestamp + DELAY);
        escrow.withdraw(channel);
        expectSkip(claimOf(channel, 5, 1), SkipReason.Closed);
    }

    // ------------------------------------------------------------------ partial withdrawals

    function _take(Channel memory channel, uint128 amount) private {
        uint64 nonce = escrow.getChannel(escrow.channelId(channel)).requests;
        vm.prank(payer);
        escrow.requestWithdrawal(channel, amount, nonce, SOON, "");
        vm.warp(block.timestamp + DELAY);
        escrow.withdraw(channel);
    }

    function test_a_partial_withdrawal_leaves_the_channel_open() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.expectEmit(address(escrow));
        emit IEscrow.WithdrawalRequested(id, 4, 0, uint64(block.timestamp) + DELAY);
        vm.prank(payer);
        escrow.requestWithdrawal(channel, 4, 0, SOON, "");
        expectWithdrawals(id, 0, 4, block.timestamp, 1);
        vm.warp(block.timestamp + DELAY);
        vm.expectEmit(address(escrow));
        emit IEscrow.Withdrawn(id, 4);
        escrow.withdraw(channel);
        expectState(id, DEPOSIT, 0, false);
        expectWithdrawals(id, 4, 0, 0, 1);
        vm.assertEq(pooled(payer), POOLED - DEPOSIT + 4, "payer");
        settleOne(claimOf(channel, type(uint128).max, 1));
        vm.assertEq(token.balanceOf(receiver), DEPOSIT - 4, "what is left");
        expectSkip(claimOf(channel, type(uint128).max, 1), SkipReason.DepositExhausted);
    }

    function test_partial_withdrawals_add_up_and_a_top_up_comes_on_top() public {
        (Channel memory channel, bytes32 id) = open(1);
        _take(channel, 4);
        _take(channel, 6);
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT + 3, 0, SOON, "");
        expectWithdrawals(id, 10, 0, 0, 2);
        settleOne(claimOf(channel, type(uint128).max, 1));
        vm.assertEq(token.balanceOf(receiver), DEPOSIT - 7, "what is left");
    }

    function test_a_withdrawal_takes_at_most_what_is_left() public {
        (Channel memory channel, bytes32 id) = open(1);
        settleOne(claimOf(channel, DEPOSIT - 3, 1));
        _take(channel, EVERYTHING - 1);
        expectWithdrawals(id, 3, 0, 0, 1);
        expectState(id, DEPOSIT, DEPOSIT - 3, false);
        _take(channel, 9);
        expectWithdrawals(id, 3, 0, 0, 2);
    }

    function test_an_old_funding_does_not_refill_a_reduced_channel() public {
        (Channel memory channel, bytes32 id) = open(1);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, 0, SOON);
        _take(channel, 4);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositNotIncreased.selector, id, DEPOSIT, DEPOSIT));
        escrow.fund(channel, DEPOSIT, 0, SOON, signature);
    }

    function test_a_reduced_channel_returns_the_rest_when_everything_is_withdrawn() public {
        (Channel memory channel, bytes32 id) = open(1);
        _take(channel, 4);
        settleOne(claimOf(channel, 5, 1));
        vm.prank(payer);
        escrow.requestWithdrawal(channel, EVERYTHING, 1, SOON, "");
        vm.warp(block.timestamp + DELAY);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelClosed(id, payer, 5, DEPOSIT - 9, 0);
        escrow.withdraw(channel);
        expectState(id, DEPOSIT, 5, true);
        expectWithdrawals(id, 4, 0, 0, 2);
        vm.assertEq(pooled(payer), POOLED - 5, "payer");
    }

    function test_a_request_for_nothing_or_too_much_is_refused() public {
        (Channel memory channel,) = open(1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ZeroAmount.selector));
        vm.prank(payer);
        escrow.requestWithdrawal(channel, 0, 0, SOON, "");
        uint256 above = uint256(EVERYTHING) + 1;
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositTooLarge.selector, above, EVERYTHING));
        vm.prank(payer);
        escrow.requestWithdrawal(channel, uint128(above), 0, SOON, "");
    }

    function test_a_request_with_another_nonce_is_refused() public {
        (Channel memory channel,) = open(1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.WrongNonce.selector, 1, 0));
        vm.prank(payer);
        escrow.requestWithdrawal(channel, 4, 1, SOON, "");
        _take(channel, 4);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.WrongNonce.selector, 0, 1));
        vm.prank(payer);
        escrow.requestWithdrawal(channel, 4, 0, SOON, "");
    }

    function test_a_request_signature_is_bound_to_amount_and_nonce() public {
        (Channel memory channel,) = open(1);
        bytes memory signature = requestSignature(PAYER_KEY, channel, 4, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, payer));
        escrow.requestWithdrawal(channel, 5, 0, SOON, signature);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, payer));
        escrow.requestWithdrawal(channel, 4, 0, SOON - 1, signature);
        escrow.requestWithdrawal(channel, 4, 0, SOON, signature);
    }

    // ------------------------------------------------------------------ calling off

    function test_a_request_is_called_off_and_cannot_be_replayed() public {
        (Channel memory channel, bytes32 id) = open(1);
        bytes memory request = requestSignature(PAYER_KEY, channel, EVERYTHING, SOON);
        escrow.requestWithdrawal(channel, EVERYTHING, 0, SOON, request);
        bytes memory signature = cancelSignature(PAYER_KEY, channel, 0, SOON);
        vm.expectEmit(address(escrow));
        emit IEscrow.WithdrawalCancelled(id, 0);
        vm.prank(stranger);
        escrow.cancelWithdrawal(channel, 0, SOON, signature);
        expectWithdrawals(id, 0, 0, 0, 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.WrongNonce.selector, 0, 1));
        escrow.requestWithdrawal(channel, EVERYTHING, 0, SOON, request);
        vm.warp(block.timestamp + DELAY);
        _refuse(channel, abi.encodeWithSelector(IEscrow.WithdrawalNotRequested.selector, id));
    }

    function test_the_payer_calls_off_without_a_signature() public {
        (Channel memory channel, bytes32 id) = open(1);
        _request(channel);
        vm.prank(payer);
        escrow.cancelWithdrawal(channel, 0, SOON, "");
        expectWithdrawals(id, 0, 0, 0, 1);
    }

    function test_calling_off_is_refused_without_request_time_number_or_signature() public {
        (Channel memory channel, bytes32 id) = open(1);
        bytes memory signature = cancelSignature(PAYER_KEY, channel, 0, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.WithdrawalNotRequested.selector, id));
        escrow.cancelWithdrawal(channel, 0, SOON, signature);
        _request(channel);
        uint64 past = uint64(block.timestamp) - 1;
        vm.expectRevert(abi.encodeWithSelector(IEscrow.Expired.selector, past, block.timestamp));
        vm.prank(payer);
        escrow.cancelWithdrawal(channel, 0, past, "");
        vm.expectRevert(abi.encodeWithSelector(IEscrow.WrongNonce.selector, 1, 0));
        vm.prank(payer);
        escrow.cancelWithdrawal(channel, 1, SOON, "");
        bytes memory foreign = cancelSignature(STRANGER_KEY, channel, 0, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, payer));
        escrow.cancelWithdrawal(channel, 0, SOON, foreign);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, payer));
        vm.prank(operator);
        escrow.cancelWithdrawal(channel, 0, SOON, "");
        escrow.cancelWithdrawal(
            channel,
            0,
            uint64(block.timestamp),
            cancelSignature(PAYER_KEY, channel, 0, uint64(block.timestamp))
        );
    }

    function test_nothing_is_called_off_in_a_closed_channel() public {
        (Channel memory channel, bytes32 id) = open(1);
        _request(channel);
        vm.prank(operator);
        escrow.close(unsigned(channel, 0), 0, "");
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ChannelIsClosed.selector, id));
        vm.prank(payer);
        escrow.cancelWithdrawal(channel, 0, SOON, "");
    }

    function testFuzz_withdrawals_and_settlements_never_exceed_the_deposit(uint96[6] memory amounts) public {
        (Channel memory channel, bytes32 id) = open(1);
        uint128 cumulative = 0;
        for (uint256 i = 0; i < amounts.length; i += 2) {
            cumulative += uint128(bound(amounts[i], 0, DEPOSIT));
            settleOne(claimOf(channel, cumulative, 1));
            _take(channel, uint128(bound(amounts[i + 1], 1, DEPOSIT)));
        }
        uint256 withdrawn = escrow.getChannel(id).withdrawn;
        uint256 settled = escrow.getChannel(id).settled;
        vm.assertTrue(withdrawn + settled <= DEPOSIT, "within the deposit");
        vm.assertEq(token.balanceOf(receiver), settled, "receiver");
        vm.assertEq(pooled(payer), POOLED - DEPOSIT + withdrawn, "payer");
    }
}
