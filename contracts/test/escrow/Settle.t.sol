// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {TestToken} from "../../src/TestToken.sol";
import {IEscrow, SkipReason} from "../../src/interfaces/IEscrow.sol";
import {Channel, Claim} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";
import {AnswerWallet} from "../utils/Wallets.sol";

contract SettleTest is EscrowBase {
    function test_a_claim_on_an_unknown_channel_is_skipped() public {
        expectSkip(claimOf(channelOf(1), 5, 1), SkipReason.UnknownChannel);
    }

    function test_a_claim_on_a_closed_channel_is_skipped() public {
        (Channel memory channel,) = open(1);
        settleOne(claimOf(channel, 5, 1));
        vm.prank(receiver);
        escrow.close(unsigned(channel, 5), 0, "");
        expectSkip(claimOf(channel, 6, 2), SkipReason.Closed);
        expectSkip(claimOf(channel, 5, 1), SkipReason.Closed);
    }

    function test_a_claim_on_a_channel_closed_empty_is_skipped() public {
        (Channel memory channel,) = open(1);
        vm.prank(receiver);
        escrow.close(unsigned(channel, 0), 0, "");
        expectSkip(claimOf(channel, 6, 2), SkipReason.Closed);
    }

    function test_a_voucher_with_an_equal_or_lower_amount_is_skipped() public {
        (Channel memory channel,) = open(1);
        settleOne(claimOf(channel, 5, 1));
        expectSkip(claimOf(channel, 5, 1), SkipReason.NothingNew);
        expectSkip(claimOf(channel, 4, 2), SkipReason.NothingNew);
        vm.assertEq(token.balanceOf(receiver), 5, "received");
    }

    function test_a_voucher_above_a_used_up_deposit_is_skipped() public {
        (Channel memory channel,) = open(1);
        settleOne(claimOf(channel, DEPOSIT, 1));
        expectSkip(claimOf(channel, DEPOSIT + 1, 2), SkipReason.DepositExhausted);
    }

    function test_a_voucher_by_another_key_is_skipped() public {
        (Channel memory channel,) = open(1);
        expectSkip(claimBy(STRANGER_KEY, channel, 5, 1), SkipReason.BadSignature);
        expectSkip(claimBy(PAYER_KEY, channel, 5, 1), SkipReason.BadSignature);
        expectSkip(claimBy(OPERATOR_KEY, channel, 5, 1), SkipReason.BadSignature);
        expectSkip(unsigned(channel, 5), SkipReason.BadSignature);
    }

    function test_a_voucher_with_another_count_or_root_is_skipped() public {
        (Channel memory channel,) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        claim.count = 2;
        expectSkip(claim, SkipReason.BadSignature);
        claim = claimOf(channel, 5, 1);
        claim.receiptsRoot = bytes32(0);
        expectSkip(claim, SkipReason.BadSignature);
        claim = claimOf(channel, 5, 1);
        claim.cumulative = 6;
        expectSkip(claim, SkipReason.BadSignature);
    }

    function test_a_voucher_for_another_channel_is_skipped() public {
        (Channel memory channel,) = open(1);
        (Channel memory other,) = open(2);
        Claim memory claim = claimOf(channel, 5, 1);
        claim.channel = other;
        expectSkip(claim, SkipReason.BadSignature);
        claim.channel = channel;
        claim.channel.receiver = stranger;
        expectSkip(claim, SkipReason.UnknownChannel);
    }

    function test_a_voucher_on_another_chain_is_skipped() public {
        (Channel memory channel,) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        vm.chainId(999);
        expectSkip(claim, SkipReason.UnknownChannel);
    }

    function testFuzz_a_voucher_with_one_byte_changed_pays_nothing(uint256 position, uint8 change) public {
        vm.assume(change != 0);
        (Channel memory channel, bytes32 id) = open(1);
        Claim memory claim = claimOf(channel, 5, 1);
        claim.signature[bound(position, 0, 64)] ^= bytes1(change);
        settleOne(claim);
        expectState(id, DEPOSIT, 0, false);
    }

    function test_a_hostile_delegation_of_the_authorizer_cannot_void_a_voucher() public {
        (Channel memory channel,) = open(1);
        bytes memory code = address(new AnswerWallet(false)).code;
        vm.etch(authorizer, code);
        vm.etch(payer, code);
        settleOne(claimOf(channel, 5, 1));
        vm.assertEq(token.balanceOf(receiver), 5, "received");
    }

    function test_a_contract_that_accepts_everything_is_no_authorizer() public {
        Channel memory channel = channelOf(1);
        channel.authorizer = address(new AnswerWallet(true));
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT, 0, SOON, "");
        expectSkip(claimOf(channel, 5, 1), SkipReason.BadSignature);
    }

    function test_a_voucher_pays_what_is_new() public {
        (Channel memory channel, bytes32 id) = open(1);
        settleOne(claimOf(channel, 5, 1));
        Claim memory claim = claimOf(channel, 12, 3);
        vm.expectEmit(address(escrow));
        emit IEscrow.Settled(id, receiver, 7, 12, 3, ROOT);
        vm.expectEmit(address(token));
        emit IERC20.Transfer(address(escrow), receiver, 7);
        vm.prank(stranger);
        escrow.settle(one(claim));
        vm.assertEq(token.balanceOf(receiver), 12, "received");
        vm.assertEq(token.balanceOf(stranger), 0, "submitter");
        expectState(id, DEPOSIT, 12, false);
    }

    function test_a_voucher_above_the_deposit_pays_the_deposit() public {
        (Channel memory channel, bytes32 id) = open(1);
        Claim memory claim = claimOf(channel, type(uint128).max, 9);
        vm.expectEmit(address(escrow));
        emit IEscrow.Settled(id, receiver, DEPOSIT, type(uint128).max, 9, ROOT);
        settleOne(claim);
        expectState(id, DEPOSIT, DEPOSIT, false);
    }

    function test_a_top_up_releases_what_a_voucher_still_claims() public {
        (Channel memory channel, bytes32 id) = open(1);
        settleOne(claimOf(channel, DEPOSIT + 10, 9));
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT + 4, 0, SOON, "");
        settleOne(claimOf(channel, DEPOSIT + 10, 9));
        expectState(id, DEPOSIT + 4, DEPOSIT + 4, false);
        vm.assertEq(token.balanceOf(receiver), DEPOSIT + 4, "received");
    }

    function test_a_made_up_count_does_not_block_later_vouchers() public {
        (Channel memory channel, bytes32 id) = open(1);
        settleOne(claimOf(channel, 1, type(uint64).max));
        settleOne(claimOf(channel, 12, 3));
        vm.assertEq(token.balanceOf(receiver), 12, "received");
        expectState(id, DEPOSIT, 12, false);
    }

    function test_a_bad_row_does_not_stop_the_good_ones() public {
        (Channel memory first,) = open(1);
        (Channel memory second,) = open(2);
        Claim[] memory claims = new Claim[](4);
        claims[0] = claimOf(first, 5, 1);
        claims[1] = claimBy(STRANGER_KEY, second, 5, 1);
        claims[2] = claimOf(channelOf(3), 5, 1);
        claims[3] = claimOf(second, 7, 1);
        escrow.settle(claims);
        vm.assertEq(token.balanceOf(receiver), 12, "received");
    }

    function test_claims_of_one_receiver_share_one_transfer() public {
        (Channel memory first, bytes32 firstId) = open(1);
        (Channel memory second, bytes32 secondId) = open(2);
        Claim[] memory claims = new Claim[](2);
        claims[0] = claimOf(first, 5, 1);
        claims[1] = claimOf(second, 7, 2);
        vm.expectEmit(address(escrow));
        emit IEscrow.Settled(firstId, receiver, 5, 5, 1, ROOT);
        vm.expectEmit(address(escrow));
        emit IEscrow.Settled(secondId, receiver, 7, 7, 2, ROOT);
        vm.expectEmit(address(token));
        emit IERC20.Transfer(address(escrow), receiver, 12);
        escrow.settle(claims);
    }

    function test_claims_of_different_receivers_or_tokens_are_paid_apart() public {
        (Channel memory first,) = open(1);
        Channel memory second = channelOf(2);
        second.receiver = address(0x4EC32);
        vm.prank(payer);
        escrow.fund(second, DEPOSIT, 0, SOON, "");
        TestToken other = new TestToken();
        other.mint(address(this), DEPOSIT);
        other.approve(address(escrow), DEPOSIT);
        escrow.deposit(address(other), DEPOSIT, payer);
        Channel memory third = channelOf(3);
        (third.receiver, third.token) = (second.receiver, address(other));
        vm.prank(payer);
        escrow.fund(third, DEPOSIT, 0, SOON, "");
        Claim[] memory claims = new Claim[](3);
        claims[0] = claimOf(first, 5, 1);
        claims[1] = claimOf(second, 7, 1);
        claims[2] = claimOf(third, 9, 1);
        escrow.settle(claims);
        vm.assertEq(token.balanceOf(receiver), 5, "first receiver");
        vm.assertEq(token.balanceOf(second.receiver), 7, "second receiver");
        vm.assertEq(other.balanceOf(second.receiver), 9, "second receiver, other token");
    }

    function test_a_channel_twice_in_a_batch_pays_the_sum_once() public {
        (Channel memory channel,) = open(1);
        Claim[] memory claims = new Claim[](3);
        claims[0] = claimOf(channel, 5, 1);
        claims[1] = claimOf(channel, 9, 2);
        claims[2] = claimOf(channel, 9, 2);
        (uint128[] memory amounts, SkipReason[] memory reasons) = escrow.previewSettle(claims);
        vm.assertEq(amounts[0], 5, "first");
        vm.assertEq(amounts[1], 4, "second");
        vm.assertEq(uint256(reasons[2]), uint256(SkipReason.NothingNew), "third");
        escrow.settle(claims);
        vm.assertEq(token.balanceOf(receiver), 9, "received");
    }

    function test_an_empty_batch_does_nothing() public {
        escrow.settle(new Claim[](0));
    }

    function testFuzz_preview_says_what_settle_does(uint256 seed) public {
        Channel[3] memory channels;
        channels[0] = channelOf(99);
        (channels[1],) = open(1);
        (channels[2],) = open(2);
        Claim[] memory claims = new Claim[](6);
        for (uint256 i = 0; i < claims.length; ++i) {
            uint256 random = uint256(keccak256(abi.encode(seed, i)));
            uint256 key = random % 5 == 0 ? STRANGER_KEY : AUTHORIZER_KEY;
            uint128 amount = uint128(bound(random >> 8, 0, DEPOSIT + DEPOSIT / 4));
            claims[i] = claimBy(key, channels[(random >> 200) % 3], amount, uint64(i));
        }
        (uint128[] memory amounts,) = escrow.previewSettle(claims);
        uint256 total = 0;
        for (uint256 i = 0; i < amounts.length; ++i) {
            total += amounts[i];
        }
        escrow.settle(claims);
        vm.assertEq(token.balanceOf(receiver), total, "previewed and paid");
    }
}
