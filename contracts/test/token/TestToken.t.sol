// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestToken} from "../../src/TestToken.sol";
import {IERC3009} from "../../src/interfaces/IERC3009.sol";
import {Cheats} from "../utils/Vm.sol";

contract TestTokenTest is Cheats {
    uint256 private constant KEY = 0xA11CE;
    bytes32 private constant NONCE = keccak256("nonce");

    TestToken private token;
    address private from = vm.addr(KEY);
    address private to = address(0x70);
    uint256 private validAfter;
    uint256 private validBefore;

    function setUp() public {
        vm.warp(1_800_000_000);
        token = new TestToken();
        token.mint(from, 100);
        (validAfter, validBefore) = (block.timestamp - 1, block.timestamp + 1);
    }

    function _sign(uint256 key, bytes32 typeHash) private view returns (uint8 v, bytes32 r, bytes32 s) {
        bytes32 structHash =
            keccak256(abi.encode(typeHash, from, to, uint256(7), validAfter, validBefore, NONCE));
        return vm.sign(key, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash)));
    }

    function _transfer(uint256 key) private {
        (uint8 v, bytes32 r, bytes32 s) = _sign(key, token.TRANSFER_WITH_AUTHORIZATION_TYPEHASH());
        token.transferWithAuthorization(from, to, 7, validAfter, validBefore, NONCE, v, r, s);
    }

    function _cancel(uint256 key) private {
        bytes32 structHash = keccak256(abi.encode(token.CANCEL_AUTHORIZATION_TYPEHASH(), from, NONCE));
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(key, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash)));
        token.cancelAuthorization(from, NONCE, v, r, s);
    }

    /// @dev The call that must fail, made external so that expectRevert sees one call.
    function transferExternally(uint256 key) external {
        _transfer(key);
    }

    function cancelExternally(uint256 key) external {
        _cancel(key);
    }

    function test_it_calls_itself_a_test_token_with_six_decimals() public view {
        vm.assertEq(token.name(), "Test USD Coin", "name");
        vm.assertEq(token.symbol(), "tUSDC", "symbol");
        vm.assertEq(token.decimals(), 6, "decimals");
    }

    function test_anybody_mints() public {
        vm.prank(to);
        token.mint(to, 9);
        vm.assertEq(token.balanceOf(to), 9, "minted");
    }

    function test_an_authorized_transfer_moves_the_money_once() public {
        vm.assertTrue(!token.authorizationState(from, NONCE), "unused");
        vm.expectEmit(address(token));
        emit IERC3009.AuthorizationUsed(from, NONCE);
        _transfer(KEY);
        vm.assertEq(token.balanceOf(to), 7, "moved");
        vm.assertTrue(token.authorizationState(from, NONCE), "used");
        vm.expectRevert(abi.encodeWithSelector(TestToken.AuthorizationAlreadyUsed.selector, from, NONCE));
        this.transferExternally(KEY);
    }

    function test_an_authorization_outside_its_time_is_refused() public {
        vm.warp(validAfter);
        vm.expectRevert(
            abi.encodeWithSelector(TestToken.AuthorizationNotYetValid.selector, validAfter, validAfter)
        );
        this.transferExternally(KEY);
        vm.warp(validBefore);
        vm.expectRevert(
            abi.encodeWithSelector(TestToken.AuthorizationExpired.selector, validBefore, validBefore)
        );
        this.transferExternally(KEY);
    }

    function test_a_transfer_authorization_by_another_key_is_refused() public {
        vm.expectRevert(abi.encodeWithSelector(TestToken.AuthorizationNotSigned.selector, from));
        this.transferExternally(KEY + 1);
    }

    function test_only_the_payee_receives() public {
        (uint8 v, bytes32 r, bytes32 s) = _sign(KEY, token.RECEIVE_WITH_AUTHORIZATION_TYPEHASH());
        vm.expectRevert(abi.encodeWithSelector(TestToken.CallerIsNotPayee.selector, address(this), to));
        token.receiveWithAuthorization(from, to, 7, validAfter, validBefore, NONCE, v, r, s);
        vm.prank(to);
        token.receiveWithAuthorization(from, to, 7, validAfter, validBefore, NONCE, v, r, s);
        vm.assertEq(token.balanceOf(to), 7, "moved");
    }

    function test_a_transfer_authorization_is_no_receive_authorization() public {
        (uint8 v, bytes32 r, bytes32 s) = _sign(KEY, token.TRANSFER_WITH_AUTHORIZATION_TYPEHASH());
        vm.expectRevert(abi.encodeWithSelector(TestToken.AuthorizationNotSigned.selector, from));
        vm.prank(to);
        token.receiveWithAuthorization(from, to, 7, validAfter, validBefore, NONCE, v, r, s);
    }

    function test_a_cancelled_authorization_is_refused() public {
        vm.expectEmit(address(token));
        emit IERC3009.AuthorizationCanceled(from, NONCE);
        _cancel(KEY);
        bytes memory used = abi.encodeWithSelector(TestToken.AuthorizationAlreadyUsed.selector, from, NONCE);
        vm.expectRevert(used);
        this.transferExternally(KEY);
        vm.expectRevert(used);
        this.cancelExternally(KEY);
    }

    function test_only_the_authorizer_cancels() public {
        vm.expectRevert(abi.encodeWithSelector(TestToken.AuthorizationNotSigned.selector, from));
        this.cancelExternally(KEY + 1);
    }
}
