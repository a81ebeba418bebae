// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @title An ERC-20 transfer that cannot stop its caller
/// @notice Nothing that the token does reverts the caller or costs it more than the cap: neither a revert, nor burnt
/// gas, nor a long answer.
library CappedTransfer {
    /// @notice What gasleft() must be before tryTransfer, so that the token really gets `cap`.
    /// @dev A call gets at most 63/64 of what is left. Without this check a submitter could starve the transfer and so
    /// turn a payment into a refused one. 4,000 is for encoding and for the call itself (a cold account costs 2,600).
    function needed(uint256 cap) internal pure returns (uint256) {
        return cap + cap / 63 + 4_000;
    }

    /// @notice Whether the token moved the money.
    /// @dev Assembly, because Solidity copies all that the token returns and cannot read a missing answer. No answer
    /// counts if the token is a contract (old tokens); else it must be true.
    function tryTransfer(address token, address receiver, uint256 amount, uint256 cap)
        internal
        returns (bool moved)
    {
        bytes memory data = abi.encodeCall(IERC20.transfer, (receiver, amount));
        assembly ("memory-safe") {
            moved := call(cap, token, 0, add(data, 0x20), mload(data), 0x00, 0x20)
            switch returndatasize()
            case 0 { moved := and(moved, gt(extcodesize(token), 0)) }
            default { moved := and(moved, and(gt(returndatasize(), 0x1f), eq(mload(0x00), 1))) }
        }
    }
}
