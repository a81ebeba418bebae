// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestToken} from "../../src/TestToken.sol";
import {IEscrow} from "../../src/interfaces/IEscrow.sol";
import {Channel} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";
import {AnswerWallet, KeyWallet, LongWallet, RevertingWallet} from "../utils/Wallets.sol";

contract FundTest is EscrowBase {
    uint256 private constant CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    function _refuseTerms(Channel memory channel, bytes memory reason) private {
        vm.expectRevert(reason);
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT, 0, SOON, "");
    }

    function _refuseSignature(Channel memory channel, bytes memory signature) private {
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, channel.payer));
        escrow.fund(channel, DEPOSIT, 0, SOON, signature);
    }

    function test_funding_after_the_deadline_is_refused() public {
        uint64 past = uint64(block.timestamp) - 1;
        Channel memory channel = channelOf(1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.Expired.selector, past, block.timestamp));
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT, 0, past, "");
    }

    function test_a_closed_channel_never_opens_again() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.prank(operator);
        escrow.close(unsigned(channel, 0), 0, "");
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ChannelIsClosed.selector, id));
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT + 1, 0, SOON, "");
    }

    function test_a_replayed_funding_is_refused() public {
        Channel memory channel = channelOf(1);
        bytes32 id = escrow.channelId(channel);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, 0, SOON);
        escrow.fund(channel, DEPOSIT, 0, SOON, signature);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositNotIncreased.selector, id, DEPOSIT, DEPOSIT));
        escrow.fund(channel, DEPOSIT, 0, SOON, signature);
    }

    function test_a_deposit_above_the_maximum_is_refused() public {
        uint128 most = escrow.MAX_CHANNEL_DEPOSIT();
        _refuseMost(most + 1, abi.encodeWithSelector(IEscrow.DepositTooLarge.selector, most + 1, most));
        pool(payer, most);
        vm.prank(payer);
        escrow.fund(channelOf(1), most, 0, SOON, "");
    }

    function _refuseMost(uint128 total, bytes memory reason) private {
        vm.expectRevert(reason);
        vm.prank(payer);
        escrow.fund(channelOf(1), total, 0, SOON, "");
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
        channel.withdrawalDelay = least;
        openAs(channel);
        channel.withdrawalDelay = most;
        openAs(channel);
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
        channel.receiver = address(token);
        _refuseTerms(channel, abi.encodeWithSelector(IEscrow.BadParty.selector, address(token)));
    }

    function test_funding_by_a_stranger_is_refused() public {
        Channel memory channel = channelOf(1);
        _refuseSignature(channel, "");
        _refuseSignature(channel, fundSignature(STRANGER_KEY, channel, DEPOSIT, 0, SOON));
        _refuseSignature(channel, fundSignature(AUTHORIZER_KEY, channel, DEPOSIT, 0, SOON));
    }

    function test_a_funding_signature_for_another_total_is_refused() public {
        Channel memory channel = channelOf(1);
        _refuseSignature(channel, fundSignature(PAYER_KEY, channel, DEPOSIT - 1, 0, SOON));
        _refuseSignature(channel, fundSignature(PAYER_KEY, channel, DEPOSIT, 0, SOON - 1));
        _refuseSignature(channel, fundSignature(PAYER_KEY, channelOf(2), DEPOSIT, 0, SOON));
    }

    function test_a_funding_signature_for_another_escrow_is_refused() public {
        Channel memory channel = channelOf(1);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, 0, SOON);
        escrow = newEscrow();
        pool(payer, POOLED);
        _refuseSignature(channel, signature);
    }

    function test_a_high_s_funding_signature_is_refused() public {
        Channel memory channel = channelOf(1);
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(PAYER_KEY, digestOf(hashes.fundChannel(channel, DEPOSIT, 0, SOON)));
        _refuseSignature(channel, abi.encodePacked(r, CURVE_ORDER - uint256(s), v == 27 ? 28 : 27));
    }

    function testFuzz_a_funding_signature_with_one_byte_changed_is_refused(uint256 position, uint8 change)
        public
    {
        vm.assume(change != 0);
        Channel memory channel = channelOf(1);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, 0, SOON);
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
        escrow.fund(channel, uint128(POOLED) + 1, 0, SOON, "");
    }

    function test_the_payer_opens_a_channel_without_a_signature() public {
        Channel memory channel = channelOf(1);
        bytes32 id = escrow.channelId(channel);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelOpened(id, payer, operator, channel);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelFunded(id, DEPOSIT, DEPOSIT, 0);
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT, 0, SOON, "");
        expectState(id, DEPOSIT, 0, false);
        vm.assertEq(pooled(payer), POOLED - DEPOSIT, "pooled");
        vm.recordLogs();
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT + 1, 0, SOON, "");
        vm.assertEq(vm.getRecordedLogs().length, 1, "a top up without a fee says ChannelFunded alone");
    }

    function test_anybody_opens_a_channel_with_the_payers_signature() public {
        Channel memory channel = channelOf(1);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, 0, uint64(block.timestamp));
        vm.prank(stranger);
        escrow.fund(channel, DEPOSIT, 0, uint64(block.timestamp), signature);
        expectState(escrow.channelId(channel), DEPOSIT, 0, false);
    }

    function test_a_top_up_takes_only_the_difference() public {
        (Channel memory channel, bytes32 id) = open(1);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT + 5, 0, SOON);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelFunded(id, DEPOSIT + 5, 5, 0);
        escrow.fund(channel, DEPOSIT + 5, 0, SOON, signature);
        vm.assertEq(pooled(payer), POOLED - DEPOSIT - 5, "pooled");
        expectState(id, DEPOSIT + 5, 0, false);
    }

    function test_a_top_up_is_possible_while_a_withdrawal_is_pending() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.prank(payer);
        escrow.requestWithdrawal(channel, EVERYTHING, 0, SOON, "");
        escrow.fund(channel, DEPOSIT + 5, 0, SOON, fundSignature(PAYER_KEY, channel, DEPOSIT + 5, 0, SOON));
        expectState(id, DEPOSIT + 5, 0, false);
    }

    function test_a_smart_account_funds_by_its_own_signature_rule() public {
        address wallet = address(new KeyWallet(payer));
        pool(wallet, POOLED);
        Channel memory channel = channelOf(1);
        channel.payer = wallet;
        _refuseSignature(channel, fundSignature(STRANGER_KEY, channel, DEPOSIT, 0, SOON));
        escrow.fund(channel, DEPOSIT, 0, SOON, fundSignature(PAYER_KEY, channel, DEPOSIT, 0, SOON));
        expectState(escrow.channelId(channel), DEPOSIT, 0, false);
    }

    function test_a_delegated_payer_still_funds_with_its_key() public {
        vm.etch(payer, address(new RevertingWallet()).code);
        Channel memory channel = channelOf(1);
        escrow.fund(channel, DEPOSIT, 0, SOON, fundSignature(PAYER_KEY, channel, DEPOSIT, 0, SOON));
        expectState(escrow.channelId(channel), DEPOSIT, 0, false);
    }

    function test_a_delegated_payer_whose_code_fails_is_refused_without_its_key() public {
        vm.etch(payer, address(new RevertingWallet()).code);
        Channel memory channel = channelOf(1);
        _refuseSignature(channel, fundSignature(STRANGER_KEY, channel, DEPOSIT, 0, SOON));
    }

    function test_a_delegated_payer_with_a_willing_code_is_asked_second() public {
        vm.etch(payer, address(new AnswerWallet(true)).code);
        Channel memory channel = channelOf(1);
        escrow.fund(channel, DEPOSIT, 0, SOON, fundSignature(STRANGER_KEY, channel, DEPOSIT, 0, SOON));
        expectState(escrow.channelId(channel), DEPOSIT, 0, false);
    }

    // ------------------------------------------------------------------ a fee for opening

    function test_a_fee_is_taken_beside_the_deposit_and_waits_for_the_receiver() public {
        Channel memory channel = channelOf(1);
        bytes32 id = escrow.channelId(channel);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, 9, SOON);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelFunded(id, DEPOSIT, DEPOSIT, 9);
        vm.expectEmit(address(escrow));
        emit IEscrow.PayoutCredited(address(token), receiver, 9, id);
        vm.prank(stranger);
        escrow.fund(channel, DEPOSIT, 9, SOON, signature);
        expectState(id, DEPOSIT, 0, false);
        vm.assertEq(pooled(payer), POOLED - DEPOSIT - 9, "payer");
        vm.assertEq(waiting(receiver), 9, "waits");
        escrow.pushPayout(address(token), receiver);
        vm.assertEq(token.balanceOf(receiver), 9, "pushed");
    }

    function test_a_funding_signature_for_another_fee_is_refused() public {
        Channel memory channel = channelOf(1);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, 9, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, payer));
        escrow.fund(channel, DEPOSIT, 10, SOON, signature);
    }

    function test_a_fee_above_the_rest_of_the_pooled_balance_is_refused() public {
        Channel memory channel = channelOf(1);
        uint256 needed = uint256(DEPOSIT) + type(uint128).max;
        vm.expectRevert(
            abi.encodeWithSelector(
                IEscrow.InsufficientBalance.selector, address(token), payer, POOLED, needed
            )
        );
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT, type(uint128).max, SOON, "");
    }

    // ------------------------------------------------------------------ openWithAuthorization

    function _give(uint256 amount) private {
        token.mint(payer, amount);
    }

    function _openBy(Channel memory channel, uint128 amount, uint128 fee, bytes memory signature) private {
        escrow.openWithAuthorization(channel, amount, fee, 0, type(uint256).max, signature);
    }

    function test_one_authorization_opens_a_channel_and_pays_the_fee() public {
        _give(DEPOSIT + 9);
        Channel memory channel = channelOf(1);
        bytes32 id = escrow.channelId(channel);
        bytes memory signature = openingSignature(PAYER_KEY, channel, DEPOSIT, 9);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelOpened(id, payer, operator, channel);
        vm.expectEmit(address(escrow));
        emit IEscrow.ChannelFunded(id, DEPOSIT, DEPOSIT, 9);
        vm.expectEmit(address(escrow));
        emit IEscrow.PayoutCredited(address(token), receiver, 9, id);
        vm.prank(stranger);
        _openBy(channel, DEPOSIT, 9, signature);
        expectState(id, DEPOSIT, 0, false);
        vm.assertEq(pooled(payer), POOLED, "the pooled balance is untouched");
        vm.assertEq(token.balanceOf(payer), 0, "the wallet paid");
        vm.assertEq(waiting(receiver), 9, "waits");
    }

    function test_an_authorization_tops_up_and_is_bound_to_what_was_funded_before() public {
        (Channel memory channel, bytes32 id) = open(1);
        _give(20);
        bytes memory signature = openingSignature(PAYER_KEY, channel, 5, 0);
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT + 1, 0, SOON, "");
        vm.expectRevert(abi.encodeWithSelector(TestToken.AuthorizationNotSigned.selector, payer));
        _openBy(channel, 5, 0, signature);
        _openBy(channel, 5, 0, openingSignature(PAYER_KEY, channel, 5, 0));
        expectState(id, DEPOSIT + 6, 0, false);
    }

    function test_an_authorization_is_bound_to_channel_amount_and_fee() public {
        _give(100);
        Channel memory channel = channelOf(1);
        bytes memory signature = openingSignature(PAYER_KEY, channel, 5, 2);
        bytes memory reason = abi.encodeWithSelector(TestToken.AuthorizationNotSigned.selector, payer);
        vm.expectRevert(reason);
        _openBy(channelOf(2), 5, 2, signature);
        vm.expectRevert(reason);
        _openBy(channel, 6, 2, signature);
        vm.expectRevert(reason);
        _openBy(channel, 4, 3, signature);
        signature = openingSignature(STRANGER_KEY, channel, 5, 2);
        vm.expectRevert(reason);
        _openBy(channel, 5, 2, signature);
    }

    function test_an_authorization_to_deposit_opens_nothing() public {
        _give(5);
        Channel memory channel = channelOf(1);
        bytes memory signature =
            signDigest(PAYER_KEY, authorizationDigest(payer, 5, escrow.depositNonce(bytes32(0))));
        vm.expectRevert(abi.encodeWithSelector(TestToken.AuthorizationNotSigned.selector, payer));
        _openBy(channel, 5, 0, signature);
    }

    function test_an_opening_that_the_escrow_would_refuse_by_signature_is_refused() public {
        Channel memory channel = channelOf(1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ZeroAmount.selector));
        _openBy(channel, 0, 5, new bytes(65));
        uint256 most = escrow.MAX_CHANNEL_DEPOSIT();
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositTooLarge.selector, most + 1, most));
        _openBy(channel, uint128(most) + 1, 0, new bytes(65));
        channel.withdrawalDelay = 59;
        vm.expectRevert(abi.encodeWithSelector(IEscrow.WithdrawalDelayOutOfRange.selector, 59, 60, 30 days));
        _openBy(channel, 5, 0, new bytes(65));
        bytes32 id;
        (channel, id) = open(2);
        vm.prank(operator);
        escrow.close(unsigned(channel, 0), 0, "");
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ChannelIsClosed.selector, id));
        _openBy(channel, 5, 0, new bytes(65));
    }

    function test_a_top_up_above_the_maximum_is_refused() public {
        (Channel memory channel,) = open(1);
        uint256 most = escrow.MAX_CHANNEL_DEPOSIT();
        uint128 rest = uint128(most - DEPOSIT);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositTooLarge.selector, most + 1, most));
        _openBy(channel, rest + 1, 0, new bytes(65));
        _give(rest);
        _openBy(channel, rest, 0, openingSignature(PAYER_KEY, channel, rest, 0));
        expectState(escrow.channelId(channel), most, 0, false);
    }

    function test_a_smart_account_opens_by_a_signature_of_any_length() public {
        LongWallet wallet = new LongWallet(payer);
        Channel memory channel = channelOf(1);
        channel.payer = address(wallet);
        token.mint(address(wallet), DEPOSIT + 9);
        bytes memory signature = openingSignature(PAYER_KEY, channel, DEPOSIT, 9);
        _openBy(channel, DEPOSIT, 9, bytes.concat(signature, "tail"));
        expectState(escrow.channelId(channel), DEPOSIT, 0, false);
    }

    /// @dev A channel with dirty bits would have another id than its clean twin; nobody can open one.
    function test_a_channel_with_dirty_bits_is_refused() public {
        Channel memory channel = channelOf(1);
        for (uint256 member = 0; member < 6; ++member) {
            bytes memory data = abi.encodeCall(IEscrow.fund, (channel, DEPOSIT, 0, SOON, ""));
            assembly ("memory-safe") {
                let word := add(add(data, 0x24), mul(member, 0x20))
                mstore(word, or(mload(word), shl(255, 1)))
            }
            vm.prank(payer);
            (bool done,) = address(escrow).call(data);
            vm.assertTrue(!done, "dirty");
        }
    }
}
