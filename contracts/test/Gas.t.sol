// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {WorkerRegistry} from "../src/WorkerRegistry.sol";
import {Registration} from "../src/interfaces/IWorkerRegistry.sol";
import {Channel, Claim} from "../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "./utils/EscrowBase.sol";

/// @notice What whole transactions cost (run with --isolate: base fee and calldata included). The figures are in
/// snapshots/transactions.json, which tools/check.sh holds against a fresh run.
contract GasTest is EscrowBase {
    uint256 private constant CHANNELS = 100;

    /// @dev A receiver and payer that have been here before: the common case.
    function setUp() public override {
        super.setUp();
        token.mint(receiver, 1);
        token.mint(payer, 1e12);
        pool(payer, 1e12);
        vm.prank(payer);
        token.approve(address(escrow), type(uint256).max);
        for (uint256 i = 0; i < CHANNELS; ++i) {
            open(i);
        }
    }

    function _snap(string memory name) private {
        vm.snapshotGasLastCall("transactions", name);
    }

    function _claims(uint256 count, uint128 cumulative) private view returns (Claim[] memory claims) {
        claims = new Claim[](count);
        for (uint256 i = 0; i < count; ++i) {
            claims[i] = claimOf(channelOf(i), cumulative, uint64(cumulative));
        }
    }

    function test_gas() public {
        vm.prank(payer);
        escrow.deposit(address(token), 5_000_000, payer);
        _snap("deposit");
        Channel memory channel = channelOf(CHANNELS);
        bytes memory signature = fundSignature(PAYER_KEY, channel, DEPOSIT, SOON);
        escrow.fund(channel, DEPOSIT, SOON, signature);
        _snap("fund: open a channel, relayed");
        signature = fundSignature(PAYER_KEY, channel, DEPOSIT + 1, SOON);
        escrow.fund(channel, DEPOSIT + 1, SOON, signature);
        _snap("fund: top up, relayed");
        escrow.settle(_claims(1, 10_000));
        _snap("settle: 1 channel, first time");
        escrow.settle(_claims(1, 20_000));
        _snap("settle: 1 channel, again");
        escrow.settle(_claims(10, 30_000));
        _snap("settle: 10 channels");
        escrow.settle(_claims(CHANNELS, 40_000));
        _snap("settle: 100 channels");
        _closings();
    }

    function _closings() private {
        Claim memory claim = claimOf(channelOf(0), 50_000, 9);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claim);
        escrow.close(claim, agreed);
        _snap("close: with a new voucher, relayed");
        vm.prank(operator);
        escrow.close(unsigned(channelOf(1), 40_000), "");
        _snap("close: nothing new, by the operator");
        Channel memory channel = channelOf(2);
        bytes memory signature = withdrawalSignature(PAYER_KEY, channel, SOON);
        escrow.requestWithdrawal(channel, SOON, signature);
        _snap("requestWithdrawal: relayed");
        vm.warp(block.timestamp + DELAY);
        escrow.withdraw(channel);
        _snap("withdraw");
        vm.prank(payer);
        escrow.withdrawBalance(address(token), 5, payer);
        _snap("withdrawBalance");
        _registration();
    }

    function _registration() private {
        WorkerRegistry registry = new WorkerRegistry(IERC20(address(token)), 1, 1);
        token.mint(operator, 10);
        vm.prank(operator);
        token.approve(address(registry), 10);
        vm.prank(operator);
        registry.register(Registration(operator, operator, receiver, 5, "worker.example:7443", SOON), "");
        _snap("register");
    }
}
