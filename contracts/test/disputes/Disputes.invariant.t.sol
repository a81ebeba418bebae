// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Cheats} from "../utils/Vm.sol";
import {DisputesHandler} from "./DisputesHandler.sol";

contract DisputesInvariantTest is Cheats {
    DisputesHandler private _handler;

    function setUp() public {
        _handler = new DisputesHandler();
        _handler.setUp();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_handler);
    }

    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        bytes4[] memory selectors = new bytes4[](6);
        selectors[0] = DisputesHandler.serve.selector;
        selectors[1] = DisputesHandler.attack.selector;
        selectors[2] = DisputesHandler.accuse.selector;
        selectors[3] = DisputesHandler.challengeAndAnswer.selector;
        selectors[4] = DisputesHandler.beSilent.selector;
        selectors[5] = DisputesHandler.push.selector;
        targets = new FuzzSelector[](1);
        targets[0] = FuzzSelector(address(_handler), selectors);
    }

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    /// @dev One function, because forge runs all sequences again for each.
    function invariant_no_honest_worker_is_slashed_and_every_unit_is_accounted_for() external view {
        vm.assertEq(_handler.proved(), 0, "a proof held against an honest worker");
        vm.assertEq(_handler.asked(), _handler.answered(), "every question was answered");
        vm.assertEq(_handler.honestStake(), 1_000_000_000, "stake");
        vm.assertTrue(_handler.honestIsActive(), "active");
        vm.assertEq(_handler.accounted(), _handler.staked(), "stakes, rewards and what was forfeited");
        vm.assertEq(_handler.heldByRegistry(), _handler.staked(), "held");
        (uint256 held, uint256 owed) = _handler.coins();
        vm.assertEq(held, owed, "coins");
        (uint256 worst, uint256 tenth) = _handler.worstDay();
        vm.assertTrue(worst <= tenth, "silences of 24 hours cost at most a tenth");
    }
}
