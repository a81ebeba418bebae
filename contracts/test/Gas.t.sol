// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IWorkerRegistry, Registration} from "../src/interfaces/IWorkerRegistry.sol";
import {Channel, Claim, WithdrawPooled} from "../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "./utils/EscrowBase.sol";

/// @notice What whole transactions cost (run with --isolate: base fee and calldata included). The figures are in
/// snapshots/transactions.json, which tools/check.sh holds against a fresh run. Payers are distinct and salts random,
/// as in a market: equal ones would make the calldata cheaper than it ever is.
contract GasTest is EscrowBase {
    uint256 private constant CHANNELS = 100;
    uint256 private constant FIRST_KEY = 0x1000;
    /// @dev What the specification promises.
    uint256 private constant MOST_PACKED_ROW = 15_500;
    uint256 private constant MOST_CLOSE = 72_000;
    uint256 private constant MOST_OPENING = 110_000;
    /// @dev A fee costs 7,500 more: a storage slot that is not empty, and the event that says where it waits.
    uint256 private constant MOST_OPENING_WITH_FEE = 113_000;
    uint256 private constant MOST_JOB_POOLED = 140;
    uint256 private constant MOST_JOB_ONE_STEP = 185;

    /// @dev A receiver, an operator and payers that have been here before: the common case.
    function setUp() public override {
        super.setUp();
        token.mint(receiver, 1);
        for (uint256 i = 0; i < CHANNELS + 4; ++i) {
            Channel memory channel = _channel(i);
            pool(channel.payer, 1e9);
            token.mint(channel.payer, 1e9);
            if (i < CHANNELS) openAs(channel);
        }
    }

    function _channel(uint256 i) private view returns (Channel memory channel) {
        channel = channelOf(uint256(keccak256(abi.encode("salt", i))));
        channel.payer = vm.addr(FIRST_KEY + i);
        channel.authorizer = vm.addr(2 * FIRST_KEY + i);
    }

    function _claim(uint256 i, uint128 cumulative) private view returns (Claim memory) {
        return claimBy(2 * FIRST_KEY + i, _channel(i), cumulative, uint64(cumulative / 100));
    }

    function _claims(uint256 count, uint128 cumulative) private view returns (Claim[] memory claims) {
        claims = new Claim[](count);
        for (uint256 i = 0; i < count; ++i) {
            claims[i] = _claim(i, cumulative);
        }
    }

    function _snap(string memory name) private returns (uint256) {
        return vm.snapshotGasLastCall("transactions", name);
    }

    function _most(uint256 used, uint256 most, string memory what) private pure {
        vm.assertTrue(used < most, string.concat(what, ": ", vm.toString(used), " >= ", vm.toString(most)));
    }

    // ------------------------------------------------------------------ settling

    function test_gas_of_settling() public {
        escrow.settle(_claims(1, 10_000));
        _snap("settle: 1 channel, first time");
        escrow.settle(_claims(1, 20_000));
        _snap("settle: 1 channel, again");
        escrow.settle(_claims(10, 30_000));
        _snap("settle: 10 channels");
        escrow.settle(_claims(CHANNELS, 40_000));
        _snap("settle: 100 channels");
        Claim[] memory claims = _claims(CHANNELS, 50_000);
        escrow.settlePacked(termsOf(claims[0].channel), packOne(_claim(0, 45_000)));
        _snap("settlePacked: 1 channel");
        escrow.settlePacked(termsOf(claims[0].channel), pack(_claims(10, 46_000)));
        _snap("settlePacked: 10 channels");
        escrow.settlePacked(termsOf(claims[0].channel), pack(claims));
        uint256 used = _snap("settlePacked: 100 channels");
        vm.assertEq(escrow.getChannel(escrow.channelId(claims[99].channel)).settled, 50_000, "settled");
        _most(used / CHANNELS, MOST_PACKED_ROW, "packed row of 100");
    }

    // ------------------------------------------------------------------ the life of a channel

    function test_gas_of_a_channel_out_of_a_pooled_balance() public {
        uint256 opened = _fund(CHANNELS, 0);
        _snapTopUp();
        Claim memory claim = _claim(CHANNELS, 50_000);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claim, 0);
        escrow.close(claim, 0, agreed);
        uint256 closed = _snap("close: with a new voucher, relayed");
        _most(closed, MOST_CLOSE, "close");
        _most((opened + closed) / 1000, MOST_JOB_POOLED, "a job of 1,000");
    }

    function _fund(uint256 i, uint128 fee) private returns (uint256) {
        Channel memory channel = _channel(i);
        bytes memory signature = fundSignature(FIRST_KEY + i, channel, DEPOSIT, fee, SOON);
        escrow.fund(channel, DEPOSIT, fee, SOON, signature);
        return _snap(fee == 0 ? "fund: open a channel, relayed" : "fund: open a channel with a fee, relayed");
    }

    function _snapTopUp() private {
        Channel memory channel = _channel(CHANNELS);
        bytes memory signature = fundSignature(FIRST_KEY + CHANNELS, channel, DEPOSIT + 1, 0, SOON);
        escrow.fund(channel, DEPOSIT + 1, 0, SOON, signature);
        _snap("fund: top up, relayed");
    }

    function test_gas_of_a_channel_opened_in_one_step() public {
        uint256 opened = _open(CHANNELS, 0, "openWithAuthorization: no fee");
        _most(opened, MOST_OPENING, "one-step opening");
        Claim memory claim = _claim(CHANNELS, 50_000);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claim, 0);
        escrow.close(claim, 0, agreed);
        uint256 closed = vm.lastCallGas().gasTotalUsed;
        _most((opened + closed) / 1000, MOST_JOB_ONE_STEP, "a job of 1,000");
        _open(CHANNELS + 1, 1000, "openWithAuthorization: fee into an empty payout");
        uint256 warm = _open(CHANNELS + 2, 1000, "openWithAuthorization: fee beside a waiting payout");
        _most(warm, MOST_OPENING_WITH_FEE, "one-step opening with a fee");
        escrow.pushPayout(address(token), receiver);
        _snap("pushPayout");
        _fund(CHANNELS + 3, 1000);
    }

    function _open(uint256 i, uint128 fee, string memory name) private returns (uint256) {
        Channel memory channel = _channel(i);
        bytes memory signature = openingSignature(FIRST_KEY + i, channel, DEPOSIT, fee);
        escrow.openWithAuthorization(channel, DEPOSIT, fee, 0, type(uint256).max, signature);
        return _snap(name);
    }

    function test_gas_of_closing() public {
        escrow.settle(_claims(1, 40_000));
        vm.prank(operator);
        escrow.close(unsigned(_channel(0), 40_000), 0, "");
        _snap("close: nothing new, by the operator");
        Claim memory claim = _claim(1, 50_000);
        claim.signature = closeSignature(2 * FIRST_KEY + 1, claim, 500);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claim, 500);
        escrow.close(claim, 500, agreed);
        uint256 used = _snap("close: with a new voucher and a fee, relayed");
        _most(used, MOST_CLOSE, "close with a fee");
    }

    function test_gas_of_withdrawing() public {
        (Channel memory channel, uint256 key) = (_channel(0), FIRST_KEY);
        escrow.requestWithdrawal(channel, 500, 0, SOON, requestSignature(key, channel, 500, SOON));
        _snap("requestWithdrawal: the first, relayed");
        escrow.cancelWithdrawal(channel, 0, SOON, cancelSignature(key, channel, 0, SOON));
        _snap("cancelWithdrawal: relayed");
        escrow.requestWithdrawal(channel, 500, 1, SOON, requestSignature(key, channel, 500, SOON));
        _snap("requestWithdrawal: another, relayed");
        vm.warp(block.timestamp + DELAY);
        escrow.withdraw(channel);
        _snap("withdraw: partial");
        escrow.settle(_claims(1, 40_000));
        _snap("settle: 1 channel after a partial withdrawal");
        vm.prank(channel.payer);
        escrow.requestWithdrawal(channel, EVERYTHING, 2, SOON, "");
        vm.warp(block.timestamp + DELAY);
        escrow.withdraw(channel);
        _snap("withdraw: everything");
    }

    // ------------------------------------------------------------------ pooled balances, registry

    function test_gas_of_pooled_balances() public {
        token.mint(payer, 1e9);
        vm.prank(payer);
        token.approve(address(escrow), type(uint256).max);
        vm.prank(payer);
        escrow.deposit(address(token), 5_000_000, payer);
        _snap("deposit");
        bytes32 nonce = escrow.depositNonce("salt");
        bytes memory signature = signDigest(PAYER_KEY, authorizationDigest(payer, 5_000_000, nonce));
        escrow.depositWithAuthorization(
            address(token), payer, 5_000_000, 0, type(uint256).max, "salt", signature
        );
        _snap("depositWithAuthorization");
        vm.prank(payer);
        escrow.withdrawBalance(address(token), 5, payer);
        _snap("withdrawBalance");
        token.mint(address(this), 1);
        WithdrawPooled memory order = WithdrawPooled(payer, address(token), 5, payer, 1, 0, SOON);
        escrow.withdrawBalanceFor(order, orderSignature(PAYER_KEY, order));
        _snap("withdrawBalanceFor: with a fee");
    }

    function test_gas_of_the_registry() public {
        IWorkerRegistry registry = newRegistry(address(token), 1, 7 days);
        token.mint(operator, 10);
        vm.prank(operator);
        token.approve(address(registry), 10);
        vm.prank(operator);
        registry.register(Registration(operator, operator, receiver, 5, "worker.example:7443", 0, SOON), "");
        _snap("register");
    }
}
