// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {WorkerView} from "../../src/interfaces/IWorkerRegistry.sol";
import {Cheats} from "../utils/Vm.sol";
import {RegistryHandler} from "./RegistryHandler.sol";

contract RegistryInvariantTest is Cheats {
    RegistryHandler private _handler;

    function setUp() public {
        _handler = new RegistryHandler();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_handler);
    }

    function invariant_stakes_are_safe_and_the_list_is_whole() external view {
        uint256 held = _handler.token().balanceOf(address(_handler.registry()));
        vm.assertEq(held, _handler.owed(), "held is stakes, rewards and what was forfeited");
        vm.assertEq(held, _handler.inside(), "what came in and did not go out");
        vm.assertEq(_handler.early(), 0, "a stake leaves when it is due, whole, and not before");
        vm.assertEq(_handler.reused(), 0, "a registration's number is never given twice");
        WorkerView[] memory page = _handler.registry().workers(0, 10);
        vm.assertEq(page.length, _handler.registry().workerCount(), "count");
        for (uint256 i = 0; i < page.length; ++i) {
            bool active = page[i].stake >= _handler.MIN_STAKE() && page[i].unbondRequestedAt == 0;
            vm.assertTrue(page[i].active == active, "active");
            for (uint256 j = 0; j < i; ++j) {
                vm.assertTrue(page[j].operator != page[i].operator, "listed once");
            }
        }
    }
}
