// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IEscrow, SkipReason} from "../../src/interfaces/IEscrow.sol";
import {Channel} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";
import {KeyWallet} from "../utils/Wallets.sol";

contract WithdrawalTest is EscrowBase {
    function _request(Channel memory channel) private {
        vm.prank(payer);
        escrow.requestWithdrawal(channel, SOON, "");
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
        escrow.close(unsigned(channel, 0), "");
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ChannelIsClosed.selector, id));
        _request(channel);
        _refuse(channel, abi.encodeWithSelector(IEscrow.ChannelIsClosed.selector, id));
    }

    function test_a_request_after_its_deadline_is_refused() public {
        (Channel memory channel,) = open(1);
        uint64 past = uint64(block.timestamp) - 1;
        bytes memory signature = withdrawalSignature(PAYER_KEY, channel, past);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.Expired.selector, past, block.timestamp));
        escrow.requestWithdrawal(channel, past, signature);
    }

    function test_a_replayed_request_does_not_restart_the_clock() public {
        (Channel memory channel, bytes32 id) = open(1);
        bytes memory signature = withdrawalSignature(PAYER_KEY, channel, SOON);
        escrow.requestWithdrawal(channel, SOON, signature);
        uint64 requestedAt = escrow.getChannel(id).withdrawalRequestedAt;
        vm.warp(block.timestamp + DELAY - 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.WithdrawalAlreadyRequested.selector, id, requestedAt));
        escrow.requestWithdrawal(channel, SOON, signature);
    }

    function test_a_request_by_anybody_else_is_refused() public {
        (Channel memory channel,) = open(1);
        bytes memory foreign = withdrawalSignature(AUTHORIZER_KEY, channel, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, payer));
        vm.prank(authorizer);
        escrow.requestWithdrawal(channel, SOON, foreign);
        bytes memory other = withdrawalSignature(PAYER_KEY, channelOf(2), SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, payer));
        escrow.requestWithdrawal(channel, SOON, other);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, payer));
        vm.prank(operator);
        escrow.requestWithdrawal(channel, SOON, "");
    }

    function test_the_payer_requests_without_a_signature() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.expectEmit(address(escrow));
        emit IEscrow.WithdrawalRequested(id, uint64(block.timestamp) + DELAY);
        _request(channel);
        vm.assertEq(escrow.getChannel(id).withdrawalRequestedAt, block.timestamp, "requested at");
    }

    function test_anybody_relays_the_payers_request() public {
        (Channel memory channel, bytes32 id) = open(1);
        bytes memory signature = withdrawalSignature(PAYER_KEY, channel, SOON);
        vm.prank(stranger);
        escrow.requestWithdrawal(channel, SOON, signature);
        vm.assertEq(escrow.getChannel(id).withdrawalRequestedAt, block.timestamp, "requested at");
    }

    function test_a_smart_account_requests_by_its_own_signature_rule() public {
        address wallet = address(new KeyWallet(payer));
        pool(wallet, POOLED);
        Channel memory channel = channelOf(1);
        channel.payer = wallet;
        vm.prank(wallet);
        escrow.fund(channel, DEPOSIT, SOON, "");
        bytes memory foreign = withdrawalSignature(STRANGER_KEY, channel, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, wallet));
        escrow.requestWithdrawal(channel, SOON, foreign);
        escrow.requestWithdrawal(channel, SOON, withdrawalSignature(PAYER_KEY, channel, SOON));
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
        expectState(id, 5, 5, 1, true);
        vm.assertEq(token.balanceOf(receiver), 5, "received");
        vm.assertEq(pooled(payer), POOLED - 5, "payer");
    }

    function test_anybody_returns_the_rest_to_the_payer() public {
        (Channel memory channel, bytes32 id) = open(1);
        _request(channel);
        vm.warp(block.timestamp + DELAY);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelClosed(id, payer, 0, DEPOSIT);
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
}
