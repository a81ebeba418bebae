// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IEscrow} from "../../src/interfaces/IEscrow.sol";
import {Channel, Claim} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";

contract CloseTest is EscrowBase {
    function test_an_unknown_channel_cannot_be_closed() public {
        Claim memory claim = unsigned(channelOf(1), 0);
        bytes32 id = escrow.channelId(claim.channel);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.UnknownChannel.selector, id));
        vm.prank(operator);
        escrow.close(claim, 0, "");
    }

    function test_a_channel_closes_once() public {
        (Channel memory channel, bytes32 id) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claim, 0);
        escrow.close(claim, 0, agreed);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ChannelIsClosed.selector, id));
        escrow.close(claim, 0, agreed);
    }

    function test_closing_below_what_is_settled_pays_nothing_more() public {
        (Channel memory channel, bytes32 id) = open(1);
        settleOne(claimOf(channel, 5, 1));
        vm.prank(operator);
        escrow.close(unsigned(channel, 4), 0, "");
        expectState(id, DEPOSIT, 5, true);
        vm.assertEq(token.balanceOf(receiver), 5, "received");
        vm.assertEq(pooled(payer), POOLED - 5, "payer");
    }

    function test_the_payer_alone_cannot_close() public {
        (Channel memory channel,) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        bytes memory own = closeSignature(PAYER_KEY, claim, 0);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, operator));
        vm.prank(payer);
        escrow.close(claim, 0, own);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, operator));
        vm.prank(authorizer);
        escrow.close(claim, 0, "");
    }

    function test_a_closing_signature_for_another_amount_is_refused() public {
        (Channel memory channel,) = open(1);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claimOf(channel, 5, 1), 0);
        Claim memory less = claimOf(channel, 4, 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, operator));
        vm.prank(payer);
        escrow.close(less, 0, agreed);
    }

    function test_a_voucher_signature_is_no_closing_signature() public {
        (Channel memory channel,) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        bytes memory voucher = claimBy(OPERATOR_KEY, channel, 5, 1).signature;
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, operator));
        escrow.close(claim, 0, voucher);
    }

    function test_closing_with_an_unsigned_higher_amount_is_refused() public {
        (Channel memory channel,) = open(1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, authorizer));
        vm.prank(operator);
        escrow.close(unsigned(channel, 5), 0, "");
    }

    function test_the_receiver_closes_and_the_rest_goes_back() public {
        (Channel memory channel, bytes32 id) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        vm.expectEmit(address(escrow));
        emit IEscrow.Settled(id, receiver, 5, 5, 1, ROOT);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelClosed(id, payer, 5, DEPOSIT - 5, 0);
        vm.prank(receiver);
        escrow.close(claim, 0, "");
        expectState(id, DEPOSIT, 5, true);
        vm.assertEq(token.balanceOf(receiver), 5, "received");
        vm.assertEq(pooled(payer), POOLED - 5, "payer");
    }

    function test_anybody_closes_with_the_operators_signature() public {
        (Channel memory channel, bytes32 id) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claim, 0);
        vm.prank(stranger);
        escrow.close(claim, 0, agreed);
        expectState(id, DEPOSIT, 5, true);
        vm.assertEq(pooled(stranger), 0, "submitter");
    }

    function test_closing_at_what_is_settled_needs_no_voucher() public {
        (Channel memory channel, bytes32 id) = open(1);
        settleOne(claimOf(channel, 5, 1));
        vm.prank(operator);
        escrow.close(unsigned(channel, 5), 0, "");
        expectState(id, DEPOSIT, 5, true);
        vm.assertEq(pooled(payer), POOLED - 5, "payer");
    }

    function test_an_unused_channel_closes_with_everything_refunded() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.recordLogs();
        vm.prank(operator);
        escrow.close(unsigned(channel, 0), 0, "");
        vm.assertEq(vm.getRecordedLogs().length, 1, "ChannelClosed alone");
        expectState(id, DEPOSIT, 0, true);
        vm.assertEq(pooled(payer), POOLED, "payer");
    }

    function test_closing_above_the_deposit_pays_the_deposit() public {
        (Channel memory channel, bytes32 id) = open(1);
        Claim memory claim = claimOf(channel, DEPOSIT + 5, 1);
        vm.prank(operator);
        escrow.close(claim, 0, "");
        expectState(id, DEPOSIT, DEPOSIT, true);
        vm.assertEq(token.balanceOf(receiver), DEPOSIT, "received");
    }

    function testFuzz_closing_splits_the_deposit_exactly(uint128 settled, uint128 last) public {
        (Channel memory channel,) = open(1);
        settled = uint128(bound(settled, 0, DEPOSIT));
        last = uint128(bound(last, settled, type(uint128).max));
        settleOne(claimOf(channel, settled, 1));
        Claim memory claim = claimOf(channel, last, 2);
        vm.prank(operator);
        escrow.close(claim, 0, "");
        uint256 paid = last < DEPOSIT ? last : DEPOSIT;
        vm.assertEq(token.balanceOf(receiver), paid, "received");
        vm.assertEq(pooled(payer), POOLED - paid, "payer");
        vm.assertEq(token.balanceOf(address(escrow)), POOLED - paid, "held");
    }

    // ------------------------------------------------------------------ a fee for closing

    function _withFee(Channel memory channel, uint128 cumulative, uint128 fee)
        private
        view
        returns (Claim memory claim)
    {
        claim = unsigned(channel, cumulative);
        claim.signature = closeSignature(AUTHORIZER_KEY, claim, fee);
    }

    function test_a_fee_goes_to_the_receiver_in_the_same_transfer() public {
        (Channel memory channel, bytes32 id) = open(1);
        Claim memory claim = _withFee(channel, 5, 3);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelClosed(id, payer, 5, DEPOSIT - 8, 3);
        vm.expectEmit(address(token));
        emit IERC20.Transfer(address(escrow), receiver, 8);
        vm.prank(operator);
        escrow.close(claim, 3, "");
        expectState(id, DEPOSIT, 5, true);
        vm.assertEq(token.balanceOf(receiver), 8, "received");
        vm.assertEq(pooled(payer), POOLED - 8, "payer");
    }

    function test_anybody_closes_with_a_fee_and_both_signatures() public {
        (Channel memory channel,) = open(1);
        Claim memory claim = _withFee(channel, 5, 3);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claim, 3);
        vm.prank(stranger);
        escrow.close(claim, 3, agreed);
        vm.assertEq(token.balanceOf(receiver), 8, "received");
    }

    function test_a_fee_is_at_most_what_is_left() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelClosed(id, payer, DEPOSIT - 2, 0, 2);
        Claim memory claim = _withFee(channel, DEPOSIT - 2, type(uint128).max);
        vm.prank(operator);
        escrow.close(claim, type(uint128).max, "");
        vm.assertEq(token.balanceOf(receiver), DEPOSIT, "received");
    }

    function test_a_fee_needs_the_authorizers_signature_even_with_nothing_new() public {
        (Channel memory channel,) = open(1);
        bytes memory reason = abi.encodeWithSelector(IEscrow.BadSignature.selector, authorizer);
        vm.expectRevert(reason);
        vm.prank(operator);
        escrow.close(unsigned(channel, 0), 1, "");
        Claim memory voucher = claimOf(channel, 5, 1);
        vm.expectRevert(reason);
        vm.prank(operator);
        escrow.close(voucher, 1, "");
        Claim memory other = _withFee(channel, 5, 2);
        vm.expectRevert(reason);
        vm.prank(operator);
        escrow.close(other, 1, "");
        Claim memory paid = _withFee(channel, 0, 4);
        vm.prank(operator);
        escrow.close(paid, 4, "");
        vm.assertEq(token.balanceOf(receiver), 4, "the fee alone");
    }

    function test_the_operators_signature_is_bound_to_the_fee() public {
        (Channel memory channel,) = open(1);
        Claim memory claim = _withFee(channel, 5, 3);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claim, 2);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, operator));
        escrow.close(claim, 3, agreed);
    }

    function test_without_a_fee_the_agreement_of_the_authorizer_is_no_voucher() public {
        (Channel memory channel,) = open(1);
        Claim memory claim = _withFee(channel, 5, 0);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, authorizer));
        vm.prank(operator);
        escrow.close(claim, 0, "");
    }

    function test_closing_pays_at_most_what_was_not_withdrawn() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.prank(payer);
        escrow.requestWithdrawal(channel, 4, 0, SOON, "");
        vm.warp(block.timestamp + DELAY);
        escrow.withdraw(channel);
        Claim memory claim = claimOf(channel, DEPOSIT, 1);
        vm.prank(operator);
        escrow.close(claim, 0, "");
        expectState(id, DEPOSIT, DEPOSIT - 4, true);
        vm.assertEq(token.balanceOf(receiver), DEPOSIT - 4, "received");
        vm.assertEq(pooled(payer), POOLED - DEPOSIT + 4, "payer");
    }

    function test_a_pending_request_disappears_with_the_channel() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.prank(payer);
        escrow.requestWithdrawal(channel, 4, 0, SOON, "");
        vm.prank(operator);
        escrow.close(unsigned(channel, 0), 0, "");
        expectWithdrawals(id, 0, 0, 0, 1);
    }

    function testFuzz_closing_conserves_money(uint128 settled, uint128 last, uint128 fee, uint96 taken)
        public
    {
        (Channel memory channel, bytes32 id) = open(1);
        settleOne(claimOf(channel, uint128(bound(settled, 0, DEPOSIT)), 1));
        vm.prank(payer);
        escrow.requestWithdrawal(channel, uint128(bound(taken, 1, DEPOSIT)), 0, SOON, "");
        vm.warp(block.timestamp + DELAY);
        escrow.withdraw(channel);
        uint256 withdrawn = escrow.getChannel(id).withdrawn;
        Claim memory claim = _withFee(channel, last, fee);
        if (fee == 0) claim = claimOf(channel, last, 2);
        vm.prank(operator);
        escrow.close(claim, fee, "");
        uint256 paid = token.balanceOf(receiver);
        vm.assertTrue(paid + withdrawn <= DEPOSIT, "never above the deposit");
        vm.assertEq(pooled(payer), POOLED - paid, "payer");
        vm.assertEq(token.balanceOf(address(escrow)), POOLED - paid, "held");
    }
}
