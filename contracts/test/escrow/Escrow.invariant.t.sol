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
        bytes4[] memory selectors = new bytes4[](13);
        selectors[0] = EscrowHandler.deposit.selector;
        selectors[1] = EscrowHandler.donate.selector;
        selectors[2] = EscrowHandler.withdrawBalance.selector;
        selectors[3] = EscrowHandler.pushPayout.selector;
        selectors[4] = EscrowHandler.trouble.selector;
        selectors[5] = EscrowHandler.fund.selector;
        selectors[6] = EscrowHandler.openWithAuthorization.selector;
        selectors[7] = EscrowHandler.settle.selector;
        selectors[8] = EscrowHandler.settlePacked.selector;
        selectors[9] = EscrowHandler.close.selector;
        selectors[10] = EscrowHandler.requestWithdrawal.selector;
        selectors[11] = EscrowHandler.cancelWithdrawal.selector;
        selectors[12] = EscrowHandler.withdraw.selector;
        targets = new FuzzSelector[](1);
        targets[0] = FuzzSelector(address(_handler), selectors);
    }

    /// @dev One invariant for all promises: forge replays every sequence once for each invariant function.
    function invariant_the_money_is_safe() external view {
        _token(_handler.main());
        _token(address(_handler.hostile()));
        _channels();
        vm.assertEq(_handler.regressions(), 0, "no number of a channel ever goes back");
        vm.assertEq(_handler.mismatches(), 0, "the preview says what settle does, close splits exactly");
    }

    function _token(address token) private view {
        vm.assertEq(
            _handler.held(token), _handler.owed(token) + _handler.donated(token), "held is owed and donated"
        );
        vm.assertEq(_handler.got(token), _handler.due(token), "the receiver got what it earned, to the unit");
        vm.assertEq(_handler.strangersMoney(token), _handler.relayed(token), "strangers get their fees alone");
    }

    function _channels() private view {
        for (uint256 i = 0; i < _handler.CHANNELS(); ++i) {
            ChannelState memory state = _handler.stateOf(i);
            vm.assertTrue(
                uint256(state.settled) + state.withdrawn <= state.funded, "settled + withdrawn <= funded"
            );
            vm.assertTrue(state.requestedAt == 0 || state.requested > 0, "a request is for something");
        }
    }
}
