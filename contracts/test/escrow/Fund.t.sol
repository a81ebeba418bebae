// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Escrow} from "../../src/Escrow.sol";
import {IEscrow} from "../../src/interfaces/IEscrow.sol";
import {Channel} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";
import {KeyWallet, RevertingWallet} from "../utils/Wallets.sol";

contract FundTest is EscrowBase {
    uint256 private constant CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    function _refuseTerms(Channel memory channel, bytes memory reason) private {
        vm.expectRevert(reason);
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT, SOON, "");
    }

    function _refuseSignature(Channel memory channel, bytes memory signature) private {
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, channel.payer));
        escrow.fund(channel, DEPOSIT, SOON, signature);
    }

    function test_funding_after_the_deadline_is_refused() public {
        uint64 past = uint64(block.timestamp) - 1;
        Channel memory channel = channelOf(1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.Expired.selector, past, block.timestamp));
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT, past, "");
    }

    function test_a_closed_channel_never_opens_again() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.prank(operator);
        escrow.close(unsigned(channel, 0), "");
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ChannelIsClosed.selector, id));
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT, SOON, "");
    }

    function test_a_replayed_funding_is_refused() public {
        Channel memory channel = channelOf(1);
        bytes32 id = escrow.channelId(channel);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, SOON);
        escrow.fund(channel, DEPOSIT, SOON, signature);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositNotIncreased.selector, id, DEPOSIT, DEPOSIT));
        escrow.fund(channel, DEPOSIT, SOON, signature);
    }

    function test_a_deposit_above_the_maximum_is_refused() public {
        uint128 most = escrow.MAX_CHANNEL_DEPOSIT();
        _refuseMost(most + 1, abi.encodeWithSelector(IEscrow.DepositTooLarge.selector, most + 1, most));
        pool(payer, most);
        vm.prank(payer);
        escrow.fund(channelOf(1), most, SOON, "");
    }

    function _refuseMost(uint128 total, bytes memory reason) private {
        vm.expectRevert(reason);
        vm.prank(payer);
        escrow.fund(channelOf(1), total, SOON, "");
    }

    function test_a_withdrawal_delay_out_of_range_is_refused() public {
        Channel memory channel = channelOf(1);
        (uint64 least, uint64 most) = (escrow.MIN_WITHDRAWAL_DELAY(), escrow.MAX_WITHDRAWAL_DELAY());
        channel.withdrawalDelay = least - 1;
        _refuseTerms(
            channel,
            abi.encodeWithSelector(IEscrow.WithdrawalDelayOutOfRange.selector, least - 1, least, most)
        );
        channel.withdrawalDelay = most + 1;
        _refuseTerms(
            channel, abi.encodeWithSelector(IEscrow.WithdrawalDelayOutOfRange.selector, most + 1, least, most)
        );
    }

    function test_a_channel_with_a_missing_party_is_refused() public {
        Channel memory channel = channelOf(1);
        channel.authorizer = address(0);
        _refuseTerms(channel, abi.encodeWithSelector(IEscrow.BadParty.selector, address(0)));
        channel = channelOf(1);
        channel.operator = address(0);
        _refuseTerms(channel, abi.encodeWithSelector(IEscrow.BadParty.selector, address(0)));
        channel = channelOf(1);
        channel.receiver = address(0);
        _refuseTerms(channel, abi.encodeWithSelector(IEscrow.BadParty.selector, address(0)));
        channel.receiver = address(escrow);
        _refuseTerms(channel, abi.encodeWithSelector(IEscrow.BadParty.selector, address(escrow)));
    }

    function test_funding_by_a_stranger_is_refused() public {
        Channel memory channel = channelOf(1);
        _refuseSignature(channel, "");
        _refuseSignature(channel, fundSignature(STRANGER_KEY, channel, DEPOSIT, SOON));
        _refuseSignature(channel, fundSignature(AUTHORIZER_KEY, channel, DEPOSIT, SOON));
    }

    function test_a_funding_signature_for_another_total_is_refused() public {
        Channel memory channel = channelOf(1);
        _refuseSignature(channel, fundSignature(PAYER_KEY, channel, DEPOSIT - 1, SOON));
        _refuseSignature(channel, fundSignature(PAYER_KEY, channel, DEPOSIT, SOON - 1));
        _refuseSignature(channel, fundSignature(PAYER_KEY, channelOf(2), DEPOSIT, SOON));
    }

    function test_a_funding_signature_for_another_escrow_is_refused() public {
        Channel memory channel = channelOf(1);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, SOON);
        escrow = new Escrow();
        pool(payer, POOLED);
        _refuseSignature(channel, signature);
    }

    function test_a_high_s_funding_signature_is_refused() public {
        Channel memory channel = channelOf(1);
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(PAYER_KEY, digestOf(hashes.fundChannel(channel, DEPOSIT, SOON)));
        _refuseSignature(channel, abi.encodePacked(r, CURVE_ORDER - uint256(s), v == 27 ? 28 : 27));
    }

    function testFuzz_a_funding_signature_with_one_byte_changed_is_refused(uint256 position, uint8 change)
        public
    {
        vm.assume(change != 0);
        Channel memory channel = channelOf(1);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, SOON);
        position = bound(position, 0, 64);
        signature[position] ^= bytes1(change);
        _refuseSignature(channel, signature);
    }

    function test_funding_above_the_pooled_balance_is_refused() public {
        Channel memory channel = channelOf(1);
        vm.expectRevert(
            abi.encodeWithSelector(
                IEscrow.InsufficientBalance.selector, address(token), payer, POOLED, POOLED + 1
            )
        );
        vm.prank(payer);
        escrow.fund(channel, uint128(POOLED) + 1, SOON, "");
    }

    function test_the_payer_opens_a_channel_without_a_signature() public {
        Channel memory channel = channelOf(1);
        bytes32 id = escrow.channelId(channel);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelOpened(id, payer, operator, channel);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelFunded(id, DEPOSIT, DEPOSIT);
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT, SOON, "");
        expectState(id, DEPOSIT, 0, 0, false);
        vm.assertEq(pooled(payer), POOLED - DEPOSIT, "pooled");
    }

    function test_anybody_opens_a_channel_with_the_payers_signature() public {
        Channel memory channel = channelOf(1);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, uint64(block.timestamp));
        vm.prank(stranger);
        escrow.fund(channel, DEPOSIT, uint64(block.timestamp), signature);
        expectState(escrow.channelId(channel), DEPOSIT, 0, 0, false);
    }

    function test_a_top_up_takes_only_the_difference() public {
        (Channel memory channel, bytes32 id) = open(1);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT + 5, SOON);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelFunded(id, DEPOSIT + 5, 5);
        escrow.fund(channel, DEPOSIT + 5, SOON, signature);
        vm.assertEq(pooled(payer), POOLED - DEPOSIT - 5, "pooled");
        expectState(id, DEPOSIT + 5, 0, 0, false);
    }

    function test_a_top_up_is_possible_while_a_withdrawal_is_pending() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.prank(payer);
        escrow.requestWithdrawal(channel, SOON, "");
        escrow.fund(channel, DEPOSIT + 5, SOON, fundSignature(PAYER_KEY, channel, DEPOSIT + 5, SOON));
        expectState(id, DEPOSIT + 5, 0, 0, false);
    }

    function test_a_smart_account_funds_by_its_own_signature_rule() public {
        address wallet = address(new KeyWallet(payer));
        pool(wallet, POOLED);
        Channel memory channel = channelOf(1);
        channel.payer = wallet;
        _refuseSignature(channel, fundSignature(STRANGER_KEY, channel, DEPOSIT, SOON));
        escrow.fund(channel, DEPOSIT, SOON, fundSignature(PAYER_KEY, channel, DEPOSIT, SOON));
        expectState(escrow.channelId(channel), DEPOSIT, 0, 0, false);
    }

    function test_a_delegated_payer_still_funds_with_its_key() public {
        vm.etch(payer, address(new RevertingWallet()).code);
        Channel memory channel = channelOf(1);
        escrow.fund(channel, DEPOSIT, SOON, fundSignature(PAYER_KEY, channel, DEPOSIT, SOON));
        expectState(escrow.channelId(channel), DEPOSIT, 0, 0, false);
    }

    function test_a_delegated_payer_whose_code_fails_is_refused_without_its_key() public {
        vm.etch(payer, address(new RevertingWallet()).code);
        Channel memory channel = channelOf(1);
        _refuseSignature(channel, fundSignature(STRANGER_KEY, channel, DEPOSIT, SOON));
    }
}
