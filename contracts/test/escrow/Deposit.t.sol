// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {TestToken} from "../../src/TestToken.sol";
import {IEscrow} from "../../src/interfaces/IEscrow.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";

contract DepositTest is EscrowBase {
    bytes32 internal constant PERMIT =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
    bytes32 internal constant NONCE = keccak256("nonce");

    function _permit(uint256 key, uint256 amount, uint256 deadline)
        private
        view
        returns (uint8 v, bytes32 r, bytes32 s)
    {
        bytes32 structHash =
            keccak256(abi.encode(PERMIT, payer, address(escrow), amount, token.nonces(payer), deadline));
        return vm.sign(key, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash)));
    }

    function _authorization(uint256 key, uint256 amount)
        private
        view
        returns (uint8 v, bytes32 r, bytes32 s)
    {
        bytes32 structHash = keccak256(
            abi.encode(
                token.RECEIVE_WITH_AUTHORIZATION_TYPEHASH(),
                payer,
                address(escrow),
                amount,
                uint256(0),
                uint256(SOON),
                NONCE
            )
        );
        return vm.sign(key, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash)));
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
        (uint8 v, bytes32 r, bytes32 s) = _permit(PAYER_KEY, 5, block.timestamp - 1);
        vm.expectRevert(
            abi.encodeWithSelector(IEscrow.Expired.selector, block.timestamp - 1, block.timestamp)
        );
        escrow.depositWithPermit(address(token), payer, 5, block.timestamp - 1, v, r, s);
    }

    function test_a_permit_by_another_key_is_refused() public {
        token.mint(payer, 5);
        (uint8 v, bytes32 r, bytes32 s) = _permit(STRANGER_KEY, 5, SOON);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.PermitNotSigned.selector, address(token), payer));
        escrow.depositWithPermit(address(token), payer, 5, SOON, v, r, s);
    }

    function test_a_stranger_cannot_use_an_allowance_that_exists_for_another_reason() public {
        token.mint(payer, 500);
        (uint8 v, bytes32 r, bytes32 s) = _permit(PAYER_KEY, 5, SOON);
        escrow.depositWithPermit(address(token), payer, 5, SOON, v, r, s);
        vm.prank(payer);
        token.approve(address(escrow), type(uint256).max);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.PermitNotSigned.selector, address(token), payer));
        vm.prank(stranger);
        escrow.depositWithPermit(address(token), payer, 400, SOON, v, r, s);
    }

    function test_a_permit_deposit_by_a_stranger_credits_the_owner() public {
        token.mint(payer, 5);
        (uint8 v, bytes32 r, bytes32 s) = _permit(PAYER_KEY, 5, SOON);
        vm.prank(stranger);
        escrow.depositWithPermit(address(token), payer, 5, SOON, v, r, s);
        vm.assertEq(pooled(payer), POOLED + 5, "owner");
        vm.assertEq(pooled(stranger), 0, "submitter");
    }

    function test_a_front_run_permit_still_deposits() public {
        token.mint(payer, 5);
        (uint8 v, bytes32 r, bytes32 s) = _permit(PAYER_KEY, 5, SOON);
        vm.prank(stranger);
        token.permit(payer, address(escrow), 5, SOON, v, r, s);
        escrow.depositWithPermit(address(token), payer, 5, SOON, v, r, s);
        vm.assertEq(pooled(payer), POOLED + 5, "owner");
    }

    function test_an_authorization_by_another_key_is_refused() public {
        token.mint(payer, 5);
        (uint8 v, bytes32 r, bytes32 s) = _authorization(STRANGER_KEY, 5);
        vm.expectRevert(abi.encodeWithSelector(TestToken.AuthorizationNotSigned.selector, payer));
        escrow.depositWithAuthorization(address(token), payer, 5, 0, SOON, NONCE, v, r, s);
    }

    function test_an_authorization_is_good_once() public {
        token.mint(payer, 10);
        (uint8 v, bytes32 r, bytes32 s) = _authorization(PAYER_KEY, 5);
        escrow.depositWithAuthorization(address(token), payer, 5, 0, SOON, NONCE, v, r, s);
        vm.expectRevert(abi.encodeWithSelector(TestToken.AuthorizationAlreadyUsed.selector, payer, NONCE));
        escrow.depositWithAuthorization(address(token), payer, 5, 0, SOON, NONCE, v, r, s);
    }

    function test_an_authorized_deposit_by_a_stranger_credits_the_payer() public {
        token.mint(payer, 5);
        (uint8 v, bytes32 r, bytes32 s) = _authorization(PAYER_KEY, 5);
        vm.prank(stranger);
        escrow.depositWithAuthorization(address(token), payer, 5, 0, SOON, NONCE, v, r, s);
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
        emit IEscrow.BalanceWithdrawn(address(token), payer, receiver, 7);
        vm.prank(payer);
        escrow.withdrawBalance(address(token), 7, receiver);
        vm.assertEq(token.balanceOf(receiver), 7, "received");
        vm.assertEq(pooled(payer), POOLED - 7, "left");
    }
}
