// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestToken} from "../../src/TestToken.sol";
import {IWorkerRegistry, Registration} from "../../src/interfaces/IWorkerRegistry.sol";
import {Deploy} from "../utils/Deploy.sol";

/// @notice A contract of its own: RegistryTest is as large as solc can assemble.
contract SuspensionTest is Deploy {
    IWorkerRegistry private _registry;
    TestToken private _token;
    address private _operator = address(0x09E8A708);

    function setUp() public {
        vm.warp(1_800_000_000);
        _token = new TestToken();
        _registry = newRegistry(address(_token), 100, 7 days);
        _token.mint(_operator, 1000);
        vm.prank(_operator);
        _token.approve(address(_registry), 1000);
        _join();
    }

    function _join() private {
        uint64 nonce = _registry.registrationNonce(_operator);
        vm.prank(_operator);
        _registry.register(
            Registration(_operator, _operator, _operator, 100, "w:1", nonce, type(uint64).max), ""
        );
    }

    function test_only_the_deployer_suspends() public {
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.NotSlasher.selector, _operator, address(this)));
        vm.prank(_operator);
        _registry.suspend(_operator, true);
    }

    function test_a_suspended_worker_is_inactive_until_the_suspension_ends() public {
        vm.expectEmit(address(_registry));
        emit IWorkerRegistry.WorkerSuspended(_operator, true);
        _registry.suspend(_operator, true);
        vm.assertTrue(!_registry.isActive(_operator), "suspended");
        vm.assertTrue(!_registry.getWorker(_operator).active, "and shown so");
        _registry.suspend(_operator, false);
        vm.assertTrue(_registry.isActive(_operator), "active");
        _registry.suspend(_operator, true);
        vm.prank(_operator);
        _registry.requestUnbond(_operator);
        vm.warp(block.timestamp + 7 days);
        vm.prank(_operator);
        _registry.withdrawStake(_operator);
        _join();
        vm.assertTrue(_registry.isActive(_operator), "a new registration is not suspended");
    }
}
