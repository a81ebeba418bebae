// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Cheats} from "../utils/Vm.sol";
import {CarelessHandler} from "./CarelessHandler.sol";
import {DisputesHandler} from "./DisputesHandler.sol";

contract DisputesInvariantTest is Cheats {
    DisputesHandler private _honest;
    CarelessHandler private _careless;

    function setUp() public {
        _honest = new DisputesHandler();
        _honest.setUp();
        _careless = new CarelessHandler();
        _careless.join(_honest);
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](2);
        (targets[0], targets[1]) = (address(_honest), address(_careless));
    }

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        bytes4[] memory honest = new bytes4[](8);
        honest[0] = DisputesHandler.serve.selector;
        honest[1] = DisputesHandler.attack.selector;
        honest[2] = DisputesHandler.accuse.selector;
        honest[3] = DisputesHandler.question.selector;
        honest[4] = DisputesHandler.answer.selector;
        honest[5] = DisputesHandler.verdict.selector;
        honest[6] = DisputesHandler.conclude.selector;
        honest[7] = DisputesHandler.pass.selector;
        bytes4[] memory careless = new bytes4[](11);
        careless[0] = CarelessHandler.serve.selector;
        careless[1] = CarelessHandler.question.selector;
        careless[2] = CarelessHandler.flood.selector;
        careless[3] = CarelessHandler.answer.selector;
        careless[4] = CarelessHandler.conclude.selector;
        careless[5] = CarelessHandler.verdict.selector;
        careless[6] = CarelessHandler.convict.selector;
        careless[7] = CarelessHandler.unbond.selector;
        careless[8] = CarelessHandler.withdraw.selector;
        careless[9] = CarelessHandler.endReward.selector;
        careless[10] = CarelessHandler.push.selector;
        targets = new FuzzSelector[](2);
        targets[0] = FuzzSelector(address(_honest), honest);
        targets[1] = FuzzSelector(address(_careless), careless);
    }

    /// @dev One function, because forge runs all sequences again for each. Every wrong is counted and stays counted, so
    /// that a look at every eighth call sees it. forge looks after the last one in any case.
    /// forge-config: ci.invariant.check-interval = 8
    function invariant_no_honest_worker_is_slashed_and_every_unit_is_accounted_for() external view {
        _requireAll();
    }

    /// @dev A sequence ends with every unit at home, some of them with every action before that.
    function afterInvariant() external {
        if (_honest.servedJobs() % 8 == 0) _doEverything();
        _honest.close();
        _careless.close();
        _requireAll();
    }

    /// @dev Each action must succeed from wherever a sequence ended. Otherwise it might never do so.
    function test_every_action_of_honest_and_careless_workers_succeeds() external {
        _doEverything();
    }

    function _doEverything() private {
        _honest.finish();
        _requireAll();
        _careless.finish();
        _requireAll();
    }

    function _requireAll() private view {
        _requireHonest();
        _requireSlashedWithinStaked();
        _requireWindowsFit();
        _requireAccounts();
    }

    function _requireHonest() private view {
        vm.assertEq(_honest.proved(), 0, "an accusation held against an honest worker");
        vm.assertEq(_honest.stake(), 1_000_000_000, "stake");
        vm.assertTrue(_honest.isActive(), "active");
    }

    function _requireSlashedWithinStaked() private view {
        vm.assertEq(_careless.moreThanStaked(), 0, "a registration loses at most its stake");
        vm.assertEq(_careless.wrongSlashes(), 0, "each event takes what its rule says");
        (uint256 worst, uint256 tenth) = _careless.worstDay();
        vm.assertTrue(worst <= tenth, "silences of 24 hours cost at most a tenth");
    }

    function _requireWindowsFit() private view {
        vm.assertEq(_careless.goneInsideAWindow(), 0, "what can be asked and judged finds its stake");
        vm.assertEq(_careless.leftInsideAWindow(), 0, "no stake leaves inside a window");
        vm.assertEq(_careless.wrongWithdrawals(), 0, "a stake leaves when it is due, whole, and not before");
    }

    function _requireAccounts() private view {
        (uint256 held, uint256 owed, uint256 inside) = _careless.stakes();
        vm.assertEq(held, owed, "stakes, rewards and what was forfeited");
        vm.assertEq(held, inside, "what came in and did not go out");
        vm.assertEq(_careless.wrongRewards(), 0, "a reward waits, and goes where its rule says");
        (uint256 tokens, uint256 owedTokens, uint256 coins, uint256 owedCoins) = _careless.credits();
        vm.assertEq(tokens, owedTokens, "credits, bonds before the committee, waiting and lost rewards");
        vm.assertEq(coins, owedCoins, "credits and bonds of open questions");
    }
}
