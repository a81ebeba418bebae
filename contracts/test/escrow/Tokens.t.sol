// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {IEscrow} from "../../src/interfaces/IEscrow.sol";
import {Channel, Claim, WithdrawPooled} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";
import {
    BlockListToken,
    BombToken,
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
        openAs(channel);
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
        escrow.fund(channel, DEPOSIT - 1, 0, SOON, "");
        settleOne(claimOf(channel, 5, 1));
        vm.prank(payer);
        escrow.withdrawBalance(address(old), 1, payer);
        vm.assertEq(old.balanceOf(receiver), 5, "received");
        vm.assertEq(old.balanceOf(payer), 1, "withdrawn");
    }

    function test_an_authorization_that_moves_nothing_is_refused() public {
        NoReturnToken old = new NoReturnToken();
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositMismatch.selector, address(old), 7, 0));
        escrow.depositWithAuthorization(address(old), payer, 7, 0, SOON, 0, new bytes(65));
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositMismatch.selector, address(old), 7, 0));
        escrow.depositWithAuthorization(address(old), payer, 7, 0, SOON, 0, new bytes(70));
        Channel memory channel = channelOf(1);
        channel.token = address(old);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositMismatch.selector, address(old), 9, 0));
        escrow.openWithAuthorization(channel, 7, 2, 0, SOON, new bytes(65));
    }

    function test_a_permit_that_a_fallback_swallows_takes_nothing() public {
        NoReturnToken old = new NoReturnToken();
        old.mint(payer, 7);
        vm.prank(payer);
        old.approve(address(escrow), 7);
        vm.expectRevert();
        vm.prank(stranger);
        escrow.depositWithPermit(address(old), payer, 7, SOON, new bytes(65));
        vm.assertEq(old.balanceOf(payer), 7, "payer");
    }

    function test_a_token_cannot_reenter_a_withdrawal() public {
        ReentrantToken evil = new ReentrantToken();
        Channel memory channel = _openIn(evil, 1);
        vm.prank(operator);
        escrow.close(unsigned(channel, 0), 0, "");
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

    function test_a_blocked_receivers_payout_waits_and_the_batch_goes_on() public {
        BlockListToken strict = new BlockListToken();
        Claim[] memory claims = new Claim[](2);
        claims[0] = claimOf(_openIn(strict, 1), 5, 1);
        (Channel memory good,) = open(2);
        claims[1] = claimOf(good, 7, 1);
        strict.setBlocked(receiver, true);
        vm.expectEmit(address(escrow));
        emit IEscrow.PayoutCredited(address(strict), receiver, 5, 0);
        escrow.settle(claims);
        vm.assertEq(token.balanceOf(receiver), 7, "the other row is paid");
        vm.assertEq(escrow.payoutOf(address(strict), receiver), 5, "waits");
        vm.assertEq(escrow.balanceOf(address(strict), receiver), 0, "is not pooled");
    }

    function test_anybody_pushes_a_payout_to_its_receiver_and_to_nobody_else() public {
        BlockListToken strict = new BlockListToken();
        Claim memory claim = claimOf(_openIn(strict, 1), 5, 1);
        strict.setBlocked(receiver, true);
        settleOne(claim);
        vm.expectRevert();
        vm.prank(stranger);
        escrow.pushPayout(address(strict), receiver);
        strict.setBlocked(receiver, false);
        vm.expectEmit(address(escrow));
        emit IEscrow.PayoutPushed(address(strict), receiver, 5);
        vm.prank(stranger);
        escrow.pushPayout(address(strict), receiver);
        vm.assertEq(strict.balanceOf(receiver), 5, "receiver");
        vm.assertEq(escrow.payoutOf(address(strict), receiver), 0, "nothing waits");
        vm.expectRevert(abi.encodeWithSelector(IEscrow.NothingToPush.selector, address(strict), receiver));
        escrow.pushPayout(address(strict), receiver);
    }

    function test_waiting_payouts_add_up() public {
        BlockListToken strict = new BlockListToken();
        Channel memory channel = _openIn(strict, 1);
        strict.setBlocked(receiver, true);
        settleOne(claimOf(channel, 5, 1));
        settleOne(claimOf(channel, 12, 2));
        vm.assertEq(escrow.payoutOf(address(strict), receiver), 12, "both wait");
    }

    function test_a_blocked_receivers_payout_waits_on_close_with_its_fee() public {
        BlockListToken strict = new BlockListToken();
        Channel memory channel = _openIn(strict, 1);
        bytes32 id = escrow.channelId(channel);
        Claim memory claim = claimOf(channel, 5, 1);
        claim.signature = closeSignature(AUTHORIZER_KEY, claim, 3);
        strict.setBlocked(receiver, true);
        vm.expectEmit(address(escrow));
        emit IEscrow.PayoutCredited(address(strict), receiver, 8, id);
        vm.prank(operator);
        escrow.close(claim, 3, "");
        vm.assertEq(escrow.payoutOf(address(strict), receiver), 8, "waits");
        vm.assertEq(escrow.balanceOf(address(strict), payer), DEPOSIT - 8, "refunded");
    }

    function test_a_blocked_receivers_payout_waits_when_rows_are_packed() public {
        BlockListToken strict = new BlockListToken();
        Claim memory claim = claimOf(_openIn(strict, 1), 5, 1);
        strict.setBlocked(receiver, true);
        escrow.settlePacked(termsOf(claim.channel), packOne(claim));
        vm.assertEq(escrow.payoutOf(address(strict), receiver), 5, "waits");
    }

    function test_a_transfer_that_returns_false_waits() public {
        FalseToken odd = new FalseToken();
        Claim memory claim = claimOf(_openIn(odd, 1), 5, 1);
        odd.refuse(true);
        settleOne(claim);
        vm.assertEq(escrow.payoutOf(address(odd), receiver), 5, "waits");
    }

    // ------------------------------------------------------------------ no callee stops a batch (C8)

    function test_a_token_that_burns_all_gas_costs_a_batch_a_bounded_amount() public {
        BombToken bomb = new BombToken();
        Claim[] memory claims = new Claim[](11);
        claims[0] = claimOf(_openIn(bomb, 1), 5, 1);
        for (uint256 i = 1; i < claims.length; ++i) {
            Channel memory channel = channelOf(i + 1);
            channel.receiver = address(uint160(0x4EC31 + i));
            openAs(channel);
            claims[i] = claimOf(channel, 7, 1);
        }
        bomb.arm(BombToken.Mode.Burn);
        uint256 before = gasleft();
        escrow.settle{gas: 1_000_000}(claims);
        vm.assertTrue(before - gasleft() < 950_000, "bounded");
        vm.assertEq(escrow.payoutOf(address(bomb), receiver), 5, "waits");
        vm.assertEq(token.balanceOf(address(0x4EC31 + 10)), 7, "the last row is paid");
    }

    function test_long_answers_and_long_reverts_stop_nothing() public {
        for (uint8 mode = 2; mode <= 5; ++mode) {
            BombToken bomb = new BombToken();
            Claim memory claim = claimOf(_openIn(bomb, mode), 5, 1);
            bomb.arm(BombToken.Mode(mode));
            escrow.settle{gas: 300_000}(one(claim));
            vm.assertEq(escrow.payoutOf(address(bomb), receiver), 5, "waits");
            bomb.arm(BombToken.Mode.None);
            escrow.pushPayout(address(bomb), receiver);
            vm.assertEq(bomb.balanceOf(receiver), 5, "pushed");
        }
    }

    /// @dev With too little gas the transfer would fail and the credit succeed. The escrow refuses instead.
    function test_a_submitter_cannot_starve_a_transfer() public {
        (Channel memory channel, bytes32 id) = open(1);
        bytes memory call = abi.encodeCall(IEscrow.settle, (one(claimOf(channel, 5, 1))));
        uint256 paid = 0;
        uint256 refused = 0;
        for (uint256 limit = 20_000; limit < 320_000; limit += 2_500) {
            (bool done, bytes memory why) = address(escrow).call{gas: limit}(call);
            if (!done) {
                if (bytes4(why) == IEscrow.TooLittleGas.selector) ++refused;
                continue;
            }
            ++paid;
            vm.assertEq(escrow.getChannel(id).settled, 5, "settled");
            vm.assertEq(token.balanceOf(receiver), 5, "paid, and does not wait");
            vm.assertEq(waiting(receiver), 0, "nothing waits");
        }
        vm.assertTrue(refused > 0, "it says so");
        vm.assertTrue(paid > 0, "enough gas settles");
    }

    function test_a_heavy_token_is_pushed_without_a_cap() public {
        BombToken heavy = new BombToken();
        Claim memory claim = claimOf(_openIn(heavy, 1), 5, 1);
        heavy.arm(BombToken.Mode.Heavy);
        settleOne(claim);
        vm.assertEq(escrow.payoutOf(address(heavy), receiver), 5, "waits");
        escrow.pushPayout(address(heavy), receiver);
        vm.assertEq(heavy.balanceOf(receiver), 5, "pushed");
    }

    // ------------------------------------------------------------------ no function can be re-entered (C11)

    /// @dev Every function that moves money, called by the token in the middle of every other one.
    function test_no_function_can_be_reentered_from_any_other() public {
        for (uint256 outer = 0; outer < 8; ++outer) {
            bytes[] memory inner = _calls(new ReentrantToken());
            for (uint256 i = 0; i < inner.length; ++i) {
                ReentrantToken evil = new ReentrantToken();
                bytes[] memory calls = _calls(evil);
                evil.arm(address(escrow), calls[i]);
                _perform(outer, evil, calls);
                vm.assertTrue(evil.called(), "the token was called");
                vm.assertEq(
                    bytes32(evil.reason()),
                    bytes32(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector),
                    string.concat(vm.toString(outer), " into ", vm.toString(i))
                );
            }
        }
    }

    /// @dev Calls that the token may make; all would pass the guard's door if it were open.
    function _calls(ReentrantToken evil) private view returns (bytes[] memory calls) {
        Channel memory channel = channelOf(7);
        channel.token = address(evil);
        Claim memory claim = claimOf(channel, 5, 1);
        calls = new bytes[](14);
        calls[0] = abi.encodeCall(IEscrow.deposit, (address(evil), 5, stranger));
        calls[1] = abi.encodeCall(IEscrow.depositWithPermit, (address(evil), payer, 5, SOON, ""));
        calls[2] = abi.encodeCall(
            IEscrow.depositWithAuthorization, (address(evil), payer, 5, 0, SOON, 0, new bytes(65))
        );
        calls[3] = abi.encodeCall(IEscrow.withdrawBalance, (address(evil), 1, stranger));
        calls[4] = abi.encodeCall(
            IEscrow.withdrawBalanceFor, (WithdrawPooled(payer, address(evil), 1, payer, 0, 0, SOON), "")
        );
        calls[5] = abi.encodeCall(IEscrow.pushPayout, (address(evil), receiver));
        calls[6] = abi.encodeCall(IEscrow.fund, (channel, 5, 0, SOON, ""));
        calls[7] = abi.encodeCall(IEscrow.openWithAuthorization, (channel, 5, 0, 0, SOON, new bytes(65)));
        calls[8] = abi.encodeCall(IEscrow.settle, (one(claim)));
        calls[9] = abi.encodeCall(IEscrow.settlePacked, (termsOf(channel), packOne(claim)));
        calls[10] = abi.encodeCall(IEscrow.close, (claim, 0, ""));
        calls[11] = abi.encodeCall(IEscrow.requestWithdrawal, (channel, 5, 0, SOON, ""));
        calls[12] = abi.encodeCall(IEscrow.withdraw, (channel));
        calls[13] = abi.encodeCall(IEscrow.cancelWithdrawal, (channel, 0, SOON, ""));
    }

    /// @dev A call in which the escrow calls the token, with everything prepared for it to succeed.
    function _perform(uint256 which, ReentrantToken evil, bytes[] memory calls) private {
        Channel memory channel = channelOf(7);
        channel.token = address(evil);
        bytes memory armed = evil.call();
        evil.arm(address(0), "");
        evil.mint(address(this), 2 * DEPOSIT);
        evil.mint(payer, DEPOSIT);
        evil.approve(address(escrow), type(uint256).max);
        escrow.deposit(address(evil), DEPOSIT, payer);
        if (which > 3) openAs(channel);
        evil.arm(address(escrow), armed);
        if (which == 0) escrow.deposit(address(evil), 5, payer);
        if (which == 1) {
            vm.prank(payer);
            escrow.withdrawBalance(address(evil), 1, payer);
        }
        if (which == 2) {
            uint64 nonce = escrow.withdrawalNonce(payer);
            WithdrawPooled memory order = WithdrawPooled(payer, address(evil), 1, payer, 1, nonce, SOON);
            escrow.withdrawBalanceFor(order, orderSignature(PAYER_KEY, order));
        }
        if (which == 3) {
            escrow.depositWithAuthorization(address(evil), payer, 5, 0, SOON, 0, new bytes(65));
        }
        if (which == 4) _forward(calls[8]);
        if (which == 5) _forward(calls[9]);
        if (which == 6) {
            vm.prank(operator);
            _forward(calls[10]);
        }
        if (which == 7) escrow.openWithAuthorization(channel, 5, 1, 0, SOON, new bytes(65));
    }

    function _forward(bytes memory call) private {
        (bool done,) = address(escrow).call(call);
        vm.assertTrue(done, "the outer call succeeds");
    }

    function test_an_address_without_code_is_no_token() public {
        vm.expectRevert();
        escrow.deposit(address(0xDEAD), 5, payer);
    }
}
