// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {TestToken} from "../../src/TestToken.sol";
import {IEscrow} from "../../src/interfaces/IEscrow.sol";
import {Channel, WithdrawPooled} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";
import {LongWallet} from "../utils/Wallets.sol";

contract DepositTest is EscrowBase {
    bytes32 internal constant SALT = keccak256("salt");

    function _permit(uint256 key, uint256 amount, uint256 deadline) private view returns (bytes memory) {
        return _permitOf(payer, key, amount, deadline);
    }

    function _permitOf(address owner, uint256 key, uint256 amount, uint256 deadline)
        private
        view
        returns (bytes memory)
    {
        bytes32 structHash = keccak256(
            abi.encode(token.PERMIT_TYPEHASH(), owner, address(escrow), amount, token.nonces(owner), deadline)
        );
        return signDigest(key, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash)));
    }

    function _authorization(uint256 key, uint256 amount) private view returns (bytes memory) {
        return signDigest(key, authorizationDigest(payer, amount, escrow.depositNonce(SALT)));
    }

    function _depositAuthorized(uint256 amount, bytes memory signature) private {
        escrow.depositWithAuthorization(address(token), payer, amount, 0, type(uint256).max, SALT, signature);
    }

    function test_a_deposit_of_nothing_is_refused() public {
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ZeroAmount.selector));
        escrow.deposit(address(token), 0, payer);
    }

    function test_a_deposit_for_nobody_is_refused() public {
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadBeneficiary.selector, address(0)));
        escrow.deposit(address(token), 1, address(0));
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadBeneficiary.selector, address(escrow)));
        escrow.deposit(address(token), 1, address(escrow));
    }

    function test_a_deposit_without_allowance_is_refused() public {
        token.mint(address(this), 5);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(escrow), 0, 5)
        );
        escrow.deposit(address(token), 5, payer);
    }

    function test_a_deposit_credits_the_beneficiary() public {
        token.mint(stranger, 5);
        vm.prank(stranger);
        token.approve(address(escrow), 5);
        vm.expectEmit(address(escrow));
        emit IEscrow.Deposited(address(token), receiver, stranger, 5);
        vm.prank(stranger);
        escrow.deposit(address(token), 5, receiver);
        vm.assertEq(pooled(receiver), 5, "beneficiary");
        vm.assertEq(pooled(stranger), 0, "depositor");
        vm.assertEq(token.balanceOf(address(escrow)), POOLED + 5, "held");
    }

    function testFuzz_deposits_add_up(uint128 first, uint128 second) public {
        vm.assume(first > 0 && second > 0);
        pool(receiver, first);
        pool(receiver, second);
        vm.assertEq(pooled(receiver), uint256(first) + second, "sum");
    }

    function test_a_permit_after_its_deadline_is_refused() public {
        bytes memory signature = _permit(PAYER_KEY, 5, block.timestamp - 1);
        vm.expectRevert(
            abi.encodeWithSelector(IEscrow.Expired.selector, block.timestamp - 1, block.timestamp)
        );
        escrow.depositWithPermit(address(token), payer, 5, block.timestamp - 1, signature);
    }

    function test_a_permit_by_another_key_is_refused() public {
        token.mint(payer, 5);
        bytes memory signature = _permit(STRANGER_KEY, 5, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.PermitNotSigned.selector, address(token), payer));
        escrow.depositWithPermit(address(token), payer, 5, SOON, signature);
    }

    function test_a_stranger_cannot_use_an_allowance_that_exists_for_another_reason() public {
        token.mint(payer, 500);
        bytes memory signature = _permit(PAYER_KEY, 5, SOON);
        escrow.depositWithPermit(address(token), payer, 5, SOON, signature);
        vm.prank(payer);
        token.approve(address(escrow), type(uint256).max);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.PermitNotSigned.selector, address(token), payer));
        vm.prank(stranger);
        escrow.depositWithPermit(address(token), payer, 400, SOON, signature);
    }

    function test_a_permit_deposit_by_a_stranger_credits_the_owner() public {
        token.mint(payer, 5);
        bytes memory signature = _permit(PAYER_KEY, 5, block.timestamp);
        vm.prank(stranger);
        escrow.depositWithPermit(address(token), payer, 5, block.timestamp, signature);
        vm.assertEq(pooled(payer), POOLED + 5, "owner");
        vm.assertEq(pooled(stranger), 0, "submitter");
    }

    function test_a_front_run_permit_still_deposits() public {
        token.mint(payer, 5);
        bytes memory signature = _permit(PAYER_KEY, 5, SOON);
        vm.prank(stranger);
        token.permit(payer, address(escrow), 5, SOON, signature);
        escrow.depositWithPermit(address(token), payer, 5, SOON, signature);
        vm.assertEq(pooled(payer), POOLED + 5, "owner");
    }

    function test_an_authorization_by_another_key_is_refused() public {
        token.mint(payer, 5);
        bytes memory signature = _authorization(STRANGER_KEY, 5);
        vm.expectRevert(abi.encodeWithSelector(TestToken.AuthorizationNotSigned.selector, payer));
        _depositAuthorized(5, signature);
    }

    function test_an_authorization_is_good_once() public {
        token.mint(payer, 10);
        bytes memory signature = _authorization(PAYER_KEY, 5);
        _depositAuthorized(5, signature);
        bytes32 nonce = escrow.depositNonce(SALT);
        vm.assertEq(nonce, keccak256(abi.encode(SALT)), "the nonce");
        vm.expectRevert(abi.encodeWithSelector(TestToken.AuthorizationAlreadyUsed.selector, payer, nonce));
        _depositAuthorized(5, signature);
    }

    function test_an_authorized_deposit_by_a_stranger_credits_the_payer() public {
        token.mint(payer, 5);
        bytes memory signature = _authorization(PAYER_KEY, 5);
        vm.prank(stranger);
        _depositAuthorized(5, signature);
        vm.assertEq(pooled(payer), POOLED + 5, "payer");
        vm.assertEq(pooled(stranger), 0, "submitter");
    }

    function test_a_withdrawal_of_nothing_is_refused() public {
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ZeroAmount.selector));
        vm.prank(payer);
        escrow.withdrawBalance(address(token), 0, payer);
    }

    function test_a_withdrawal_to_nobody_is_refused() public {
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadBeneficiary.selector, address(0)));
        vm.prank(payer);
        escrow.withdrawBalance(address(token), 1, address(0));
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadBeneficiary.selector, address(escrow)));
        vm.prank(payer);
        escrow.withdrawBalance(address(token), 1, address(escrow));
    }

    function test_a_withdrawal_above_the_balance_is_refused() public {
        vm.expectRevert(
            abi.encodeWithSelector(
                IEscrow.InsufficientBalance.selector, address(token), payer, POOLED, POOLED + 1
            )
        );
        vm.prank(payer);
        escrow.withdrawBalance(address(token), POOLED + 1, payer);
    }

    function test_a_stranger_has_nothing_to_withdraw() public {
        vm.expectRevert(
            abi.encodeWithSelector(IEscrow.InsufficientBalance.selector, address(token), stranger, 0, 1)
        );
        vm.prank(stranger);
        escrow.withdrawBalance(address(token), 1, stranger);
    }

    function test_a_withdrawal_pays_at_once_wherever_the_owner_says() public {
        vm.expectEmit(address(escrow));
        emit IEscrow.BalanceWithdrawn(address(token), payer, receiver, 7, 0);
        vm.prank(payer);
        escrow.withdrawBalance(address(token), 7, receiver);
        vm.assertEq(token.balanceOf(receiver), 7, "received");
        vm.assertEq(pooled(payer), POOLED - 7, "left");
    }

    // ------------------------------------------------------------------ permits are good once (C7)

    function test_a_used_permit_cannot_be_replayed_against_a_later_allowance() public {
        token.mint(payer, 500);
        bytes memory signature = _permit(PAYER_KEY, 5, SOON);
        escrow.depositWithPermit(address(token), payer, 5, SOON, signature);
        vm.prank(payer);
        token.approve(address(escrow), type(uint256).max);
        for (uint256 i = 0; i < 3; ++i) {
            vm.expectRevert(abi.encodeWithSelector(IEscrow.PermitNotSigned.selector, address(token), payer));
            vm.prank(stranger);
            escrow.depositWithPermit(address(token), payer, 5, SOON, signature);
        }
        vm.assertEq(token.balanceOf(payer), 495, "the wallet keeps the rest");
    }

    function test_a_permit_that_was_given_to_the_token_itself_serves_the_owners_pool_once() public {
        token.mint(payer, 500);
        bytes memory signature = _permit(PAYER_KEY, 5, SOON);
        token.permit(payer, address(escrow), 5, SOON, signature);
        vm.prank(payer);
        escrow.deposit(address(token), 5, payer);
        vm.prank(payer);
        token.approve(address(escrow), type(uint256).max);
        vm.prank(stranger);
        escrow.depositWithPermit(address(token), payer, 5, SOON, signature);
        vm.assertEq(pooled(payer), POOLED + 10, "the owner's, whoever sent it");
        vm.expectRevert(abi.encodeWithSelector(IEscrow.PermitNotSigned.selector, address(token), payer));
        vm.prank(stranger);
        escrow.depositWithPermit(address(token), payer, 5, SOON, signature);
    }

    /// @dev A permit that was used elsewhere leaves an allowance and a nonce that no deposit has seen.
    function test_a_permit_that_was_used_elsewhere_lets_no_stranger_deposit() public {
        token.mint(payer, 500);
        token.permit(payer, address(escrow), 500, SOON, _permit(PAYER_KEY, 500, SOON));
        bytes memory signature = _permit(STRANGER_KEY, 400, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.PermitNotSigned.selector, address(token), payer));
        vm.prank(stranger);
        escrow.depositWithPermit(address(token), payer, 400, SOON, signature);
    }

    function test_a_second_permit_deposits_again() public {
        token.mint(payer, 10);
        escrow.depositWithPermit(address(token), payer, 5, SOON, _permit(PAYER_KEY, 5, SOON));
        escrow.depositWithPermit(address(token), payer, 5, SOON, _permit(PAYER_KEY, 5, SOON));
        vm.assertEq(pooled(payer), POOLED + 10, "both");
    }

    function test_a_smart_account_deposits_by_permit_and_by_authorization() public {
        LongWallet wallet = new LongWallet(payer);
        token.mint(address(wallet), 12);
        bytes memory signature = bytes.concat(_permitOf(address(wallet), PAYER_KEY, 5, SOON), "tail");
        escrow.depositWithPermit(address(token), address(wallet), 5, SOON, signature);
        bytes32 digest = authorizationDigest(address(wallet), 7, escrow.depositNonce(SALT));
        signature = bytes.concat(signDigest(PAYER_KEY, digest), "tail");
        escrow.depositWithAuthorization(
            address(token), address(wallet), 7, 0, type(uint256).max, SALT, signature
        );
        vm.assertEq(pooled(address(wallet)), 12, "both");
        vm.expectRevert(
            abi.encodeWithSelector(IEscrow.PermitNotSigned.selector, address(token), address(wallet))
        );
        escrow.depositWithPermit(address(token), address(wallet), 5, SOON, "not the wallet's signature");
    }

    function test_an_authorization_that_opens_a_channel_cannot_be_diverted_into_a_deposit() public {
        token.mint(payer, 5);
        Channel memory channel = channelOf(1);
        bytes memory signature = openingSignature(PAYER_KEY, channel, 5, 0);
        bytes32 nonce = escrow.openingNonce(escrow.channelId(channel), 0, 0);
        vm.expectRevert(abi.encodeWithSelector(TestToken.AuthorizationNotSigned.selector, payer));
        escrow.depositWithAuthorization(address(token), payer, 5, 0, type(uint256).max, nonce, signature);
    }

    // ------------------------------------------------------------------ signed orders

    function _order() private view returns (WithdrawPooled memory) {
        return WithdrawPooled(payer, address(token), 7, receiver, 2, 0, uint64(block.timestamp));
    }

    function _refuseOrder(WithdrawPooled memory order, bytes memory signature) private {
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, order.owner));
        escrow.withdrawBalanceFor(order, signature);
    }

    function test_anybody_carries_out_a_signed_order_and_gets_the_fee() public {
        WithdrawPooled memory order = _order();
        bytes memory signature = orderSignature(PAYER_KEY, order);
        vm.expectEmit(address(escrow));
        emit IEscrow.BalanceWithdrawn(address(token), payer, receiver, 7, 2);
        vm.prank(stranger);
        escrow.withdrawBalanceFor(order, signature);
        vm.assertEq(token.balanceOf(receiver), 7, "amount");
        vm.assertEq(token.balanceOf(stranger), 2, "fee");
        vm.assertEq(pooled(payer), POOLED - 9, "left");
        vm.assertEq(escrow.withdrawalNonce(payer), 1, "nonce");
    }

    function test_an_order_without_a_fee_sends_nothing_to_the_submitter() public {
        WithdrawPooled memory order = _order();
        order.fee = 0;
        bytes memory signature = orderSignature(PAYER_KEY, order);
        vm.recordLogs();
        escrow.withdrawBalanceFor(order, signature);
        vm.assertEq(vm.getRecordedLogs().length, 2, "one event of the escrow, one transfer");
        vm.assertEq(token.balanceOf(stranger), 0, "submitter");
    }

    function test_an_order_is_good_once_and_in_its_turn() public {
        WithdrawPooled memory order = _order();
        bytes memory signature = orderSignature(PAYER_KEY, order);
        escrow.withdrawBalanceFor(order, signature);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.WrongNonce.selector, 0, 1));
        escrow.withdrawBalanceFor(order, signature);
        order.nonce = 2;
        signature = orderSignature(PAYER_KEY, order);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.WrongNonce.selector, 2, 1));
        escrow.withdrawBalanceFor(order, signature);
    }

    function test_an_order_after_its_deadline_is_refused() public {
        WithdrawPooled memory order = _order();
        bytes memory signature = orderSignature(PAYER_KEY, order);
        vm.warp(block.timestamp + 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.Expired.selector, order.deadline, block.timestamp));
        escrow.withdrawBalanceFor(order, signature);
    }

    function test_a_changed_or_foreign_order_is_refused() public {
        WithdrawPooled memory order = _order();
        bytes memory signature = orderSignature(PAYER_KEY, order);
        _refuseOrder(order, orderSignature(STRANGER_KEY, order));
        order.to = stranger;
        _refuseOrder(order, signature);
        order = _order();
        order.amount = 8;
        _refuseOrder(order, signature);
        order = _order();
        order.fee = 3;
        _refuseOrder(order, signature);
        order = _order();
        order.token = address(0x70C3);
        _refuseOrder(order, signature);
        order = _order();
        order.owner = stranger;
        _refuseOrder(order, signature);
    }

    function test_an_order_above_the_balance_or_to_nobody_is_refused() public {
        WithdrawPooled memory order = _order();
        order.amount = uint128(POOLED) - 1;
        bytes memory signature = orderSignature(PAYER_KEY, order);
        vm.expectRevert(
            abi.encodeWithSelector(
                IEscrow.InsufficientBalance.selector, address(token), payer, POOLED, POOLED + 1
            )
        );
        escrow.withdrawBalanceFor(order, signature);
        order = _order();
        order.to = address(escrow);
        signature = orderSignature(PAYER_KEY, order);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadBeneficiary.selector, address(escrow)));
        escrow.withdrawBalanceFor(order, signature);
    }

    function test_a_smart_account_orders_by_its_own_signature_rule() public {
        LongWallet wallet = new LongWallet(payer);
        pool(address(wallet), 10);
        WithdrawPooled memory order = _order();
        order.owner = address(wallet);
        escrow.withdrawBalanceFor(order, bytes.concat(orderSignature(PAYER_KEY, order), "tail"));
        vm.assertEq(pooled(address(wallet)), 1, "left");
    }
}
