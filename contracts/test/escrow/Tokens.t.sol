// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IEscrow} from "../../src/interfaces/IEscrow.sol";
import {Channel, Claim} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";
import {
    BlockListToken,
    BonusToken,
    FalseToken,
    FeeToken,
    NoReturnToken,
    PlainToken,
    ReentrantToken
} from "../utils/Tokens.sol";

contract TokensTest is EscrowBase {
    /// @dev Opens a channel in `other` out of a fresh deposit of the payer.
    function _openIn(PlainToken other, uint256 salt) private returns (Channel memory channel) {
        other.mint(address(this), DEPOSIT);
        other.approve(address(escrow), DEPOSIT);
        escrow.deposit(address(other), DEPOSIT, payer);
        channel = channelOf(salt);
        channel.token = address(other);
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT, SOON, "");
    }

    function test_a_deposit_that_arrives_short_is_refused() public {
        FeeToken fee = new FeeToken();
        fee.mint(address(this), 1000);
        fee.approve(address(escrow), 1000);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositMismatch.selector, address(fee), 1000, 990));
        escrow.deposit(address(fee), 1000, payer);
    }

    function test_a_deposit_that_arrives_long_is_refused() public {
        BonusToken bonus = new BonusToken();
        bonus.mint(address(this), 1000);
        bonus.approve(address(escrow), 1000);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositMismatch.selector, address(bonus), 1000, 1001));
        escrow.deposit(address(bonus), 1000, payer);
    }

    function test_a_token_without_return_value_works() public {
        NoReturnToken old = new NoReturnToken();
        old.mint(address(this), DEPOSIT);
        old.approve(address(escrow), DEPOSIT);
        escrow.deposit(address(old), DEPOSIT, payer);
        Channel memory channel = channelOf(1);
        channel.token = address(old);
        vm.prank(payer);
        escrow.fund(channel, DEPOSIT - 1, SOON, "");
        settleOne(claimOf(channel, 5, 1));
        vm.prank(payer);
        escrow.withdrawBalance(address(old), 1, payer);
        vm.assertEq(old.balanceOf(receiver), 5, "received");
        vm.assertEq(old.balanceOf(payer), 1, "withdrawn");
    }

    function test_an_authorization_that_moves_nothing_is_refused() public {
        NoReturnToken old = new NoReturnToken();
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositMismatch.selector, address(old), 7, 0));
        escrow.depositWithAuthorization(address(old), payer, 7, 0, SOON, 0, 27, 0, 0);
    }

    function test_a_permit_that_a_fallback_swallows_takes_nothing() public {
        NoReturnToken old = new NoReturnToken();
        old.mint(payer, 7);
        vm.prank(payer);
        old.approve(address(escrow), 7);
        vm.expectRevert();
        vm.prank(stranger);
        escrow.depositWithPermit(address(old), payer, 7, SOON, 27, 0, 0);
        vm.assertEq(old.balanceOf(payer), 7, "payer");
    }

    function test_a_token_cannot_reenter_a_withdrawal() public {
        ReentrantToken evil = new ReentrantToken();
        Channel memory channel = _openIn(evil, 1);
        vm.prank(operator);
        escrow.close(unsigned(channel, 0), "");
        evil.arm(address(escrow), abi.encodeCall(IEscrow.withdrawBalance, (address(evil), 1, stranger)));
        vm.prank(payer);
        escrow.withdrawBalance(address(evil), DEPOSIT, payer);
        vm.assertTrue(!evil.reentered(), "the inner call must fail");
        vm.assertEq(evil.balanceOf(payer), DEPOSIT, "paid once");
    }

    function test_a_token_cannot_reenter_a_settlement() public {
        ReentrantToken evil = new ReentrantToken();
        Channel memory channel = _openIn(evil, 1);
        Claim memory claim = claimOf(channel, 5, 1);
        evil.arm(address(escrow), abi.encodeCall(IEscrow.settle, (one(claimOf(channel, 9, 2)))));
        settleOne(claim);
        vm.assertTrue(!evil.reentered(), "the inner call must fail");
        vm.assertEq(evil.balanceOf(receiver), 5, "paid once");
    }

    function test_a_token_cannot_deposit_twice_with_one_transfer() public {
        ReentrantToken evil = new ReentrantToken();
        evil.mint(address(this), 10);
        evil.approve(address(escrow), 10);
        evil.arm(address(escrow), abi.encodeCall(IEscrow.deposit, (address(evil), 5, stranger)));
        escrow.deposit(address(evil), 5, payer);
        vm.assertTrue(!evil.reentered(), "the inner call must fail");
        vm.assertEq(escrow.balanceOf(address(evil), stranger), 0, "nothing twice");
    }

    function test_a_blocked_receiver_is_credited_and_the_batch_goes_on() public {
        BlockListToken strict = new BlockListToken();
        Claim[] memory claims = new Claim[](2);
        claims[0] = claimOf(_openIn(strict, 1), 5, 1);
        (Channel memory good,) = open(2);
        claims[1] = claimOf(good, 7, 1);
        strict.setBlocked(receiver, true);
        vm.expectEmit(address(escrow));
        emit IEscrow.PayoutCredited(address(strict), receiver, 5);
        escrow.settle(claims);
        vm.assertEq(token.balanceOf(receiver), 7, "the other row is paid");
        vm.prank(receiver);
        escrow.withdrawBalance(address(strict), 5, address(0xC01D));
        vm.assertEq(strict.balanceOf(address(0xC01D)), 5, "the earnings leave by another way");
    }

    function test_a_blocked_receiver_is_credited_on_close() public {
        BlockListToken strict = new BlockListToken();
        Claim memory claim = claimOf(_openIn(strict, 1), 5, 1);
        strict.setBlocked(receiver, true);
        vm.prank(operator);
        escrow.close(claim, "");
        vm.assertEq(escrow.balanceOf(address(strict), receiver), 5, "credited");
        vm.assertEq(escrow.balanceOf(address(strict), payer), DEPOSIT - 5, "refunded");
    }

    function test_a_transfer_that_returns_false_is_credited() public {
        FalseToken odd = new FalseToken();
        Claim memory claim = claimOf(_openIn(odd, 1), 5, 1);
        odd.refuse(true);
        settleOne(claim);
        vm.assertEq(escrow.balanceOf(address(odd), receiver), 5, "credited");
    }

    function test_an_address_without_code_is_no_token() public {
        vm.expectRevert();
        escrow.deposit(address(0xDEAD), 5, payer);
    }
}
