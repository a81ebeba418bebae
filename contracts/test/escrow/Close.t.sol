// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IEscrow} from "../../src/interfaces/IEscrow.sol";
import {Channel, Claim} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";

contract CloseTest is EscrowBase {
    function test_an_unknown_channel_cannot_be_closed() public {
        Claim memory claim = unsigned(channelOf(1), 0);
        bytes32 id = escrow.channelId(claim.channel);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.UnknownChannel.selector, id));
        vm.prank(operator);
        escrow.close(claim, "");
    }

    function test_a_channel_closes_once() public {
        (Channel memory channel, bytes32 id) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claim);
        escrow.close(claim, agreed);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ChannelIsClosed.selector, id));
        escrow.close(claim, agreed);
    }

    function test_closing_below_what_is_settled_is_refused() public {
        (Channel memory channel, bytes32 id) = open(1);
        settleOne(claimOf(channel, 5, 1));
        Claim memory claim = claimOf(channel, 4, 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.CumulativeBelowSettled.selector, id, 5, 4));
        vm.prank(operator);
        escrow.close(claim, "");
    }

    function test_the_payer_alone_cannot_close() public {
        (Channel memory channel,) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        bytes memory own = closeSignature(PAYER_KEY, claim);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, operator));
        vm.prank(payer);
        escrow.close(claim, own);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, operator));
        vm.prank(authorizer);
        escrow.close(claim, "");
    }

    function test_a_closing_signature_for_another_amount_is_refused() public {
        (Channel memory channel,) = open(1);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claimOf(channel, 5, 1));
        Claim memory less = claimOf(channel, 4, 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, operator));
        vm.prank(payer);
        escrow.close(less, agreed);
    }

    function test_a_voucher_signature_is_no_closing_signature() public {
        (Channel memory channel,) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        bytes memory voucher = claimBy(OPERATOR_KEY, channel, 5, 1).signature;
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, operator));
        escrow.close(claim, voucher);
    }

    function test_closing_with_an_unsigned_higher_amount_is_refused() public {
        (Channel memory channel,) = open(1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, authorizer));
        vm.prank(operator);
        escrow.close(unsigned(channel, 5), "");
    }

    function test_the_receiver_closes_and_the_rest_goes_back() public {
        (Channel memory channel, bytes32 id) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        vm.expectEmit(address(escrow));
        emit IEscrow.Settled(id, receiver, 5, 5, 1, ROOT);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelClosed(id, payer, 5, DEPOSIT - 5);
        vm.prank(receiver);
        escrow.close(claim, "");
        expectState(id, 5, 5, 1, true);
        vm.assertEq(token.balanceOf(receiver), 5, "received");
        vm.assertEq(pooled(payer), POOLED - 5, "payer");
    }

    function test_anybody_closes_with_the_operators_signature() public {
        (Channel memory channel, bytes32 id) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claim);
        vm.prank(stranger);
        escrow.close(claim, agreed);
        expectState(id, 5, 5, 1, true);
        vm.assertEq(pooled(stranger), 0, "submitter");
    }

    function test_closing_at_what_is_settled_needs_no_voucher() public {
        (Channel memory channel, bytes32 id) = open(1);
        settleOne(claimOf(channel, 5, 1));
        vm.prank(operator);
        escrow.close(unsigned(channel, 5), "");
        expectState(id, 5, 5, 1, true);
        vm.assertEq(pooled(payer), POOLED - 5, "payer");
    }

    function test_an_unused_channel_closes_with_everything_refunded() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.prank(operator);
        escrow.close(unsigned(channel, 0), "");
        expectState(id, 0, 0, 0, true);
        vm.assertEq(pooled(payer), POOLED, "payer");
    }

    function test_closing_above_the_deposit_pays_the_deposit() public {
        (Channel memory channel, bytes32 id) = open(1);
        Claim memory claim = claimOf(channel, DEPOSIT + 5, 1);
        vm.prank(operator);
        escrow.close(claim, "");
        expectState(id, DEPOSIT, DEPOSIT, 1, true);
        vm.assertEq(token.balanceOf(receiver), DEPOSIT, "received");
    }

    function testFuzz_closing_splits_the_deposit_exactly(uint128 settled, uint128 last) public {
        (Channel memory channel,) = open(1);
        settled = uint128(bound(settled, 0, DEPOSIT));
        last = uint128(bound(last, settled, type(uint128).max));
        settleOne(claimOf(channel, settled, 1));
        Claim memory claim = claimOf(channel, last, 2);
        vm.prank(operator);
        escrow.close(claim, "");
        uint256 paid = last < DEPOSIT ? last : DEPOSIT;
        vm.assertEq(token.balanceOf(receiver), paid, "received");
        vm.assertEq(pooled(payer), POOLED - paid, "payer");
        vm.assertEq(token.balanceOf(address(escrow)), POOLED - paid, "held");
    }
}
