// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ChannelState} from "../../src/interfaces/IEscrow.sol";
import {Cheats} from "../utils/Vm.sol";
import {EscrowHandler} from "./EscrowHandler.sol";

contract EscrowInvariantTest is Cheats {
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    EscrowHandler private _handler;

    function setUp() public {
        _handler = new EscrowHandler();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_handler);
    }

    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        bytes4[] memory selectors = new bytes4[](8);
        selectors[0] = EscrowHandler.deposit.selector;
        selectors[1] = EscrowHandler.donate.selector;
        selectors[2] = EscrowHandler.withdrawBalance.selector;
        selectors[3] = EscrowHandler.fund.selector;
        selectors[4] = EscrowHandler.settle.selector;
        selectors[5] = EscrowHandler.close.selector;
        selectors[6] = EscrowHandler.requestWithdrawal.selector;
        selectors[7] = EscrowHandler.withdraw.selector;
        targets = new FuzzSelector[](1);
        targets[0] = FuzzSelector(address(_handler), selectors);
    }

    /// @dev One invariant for all five promises: forge replays every sequence once for each invariant function.
    function invariant_the_money_is_safe() external view {
        _holdsExactlyWhatItOwesAndWhatWasDonated();
        _moneyIsConserved();
        _settledIsNeverAboveTheDeposit();
        _settledAndClosedNeverGoBack();
        _onlyPayerAndReceiversGetMoney();
    }

    function _holdsExactlyWhatItOwesAndWhatWasDonated() private view {
        vm.assertEq(_handler.held(), _handler.owed() + _handler.donated(), "held");
    }

    function _moneyIsConserved() private view {
        vm.assertEq(_handler.owed() + _handler.paid(), _handler.netDeposited(), "conserved");
    }

    function _settledIsNeverAboveTheDeposit() private view {
        for (uint256 i = 0; i < _handler.CHANNELS(); ++i) {
            ChannelState memory state = _handler.stateOf(i);
            vm.assertTrue(state.settled <= state.deposit, "settled <= deposit");
            vm.assertTrue(!state.closed || state.settled == state.deposit, "a closed channel holds nothing");
        }
    }

    function _settledAndClosedNeverGoBack() private view {
        vm.assertEq(_handler.regressions(), 0, "regressions");
    }

    function _onlyPayerAndReceiversGetMoney() private view {
        vm.assertEq(_handler.strangersMoney(), 0, "strangers, hot keys");
    }
}
