// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Channel, PieceworkTypes, WithdrawPooled} from "../../src/libraries/PieceworkTypes.sol";

/// @notice The hash functions that take calldata, callable with structs in memory.
contract Hashes {
    function channel(Channel calldata c) external pure returns (bytes32) {
        return PieceworkTypes.hashChannel(c);
    }

    function fundChannel(Channel calldata c, uint128 funded, uint128 fee, uint64 deadline)
        external
        pure
        returns (bytes32)
    {
        return PieceworkTypes.hashFundChannel(c, funded, fee, deadline);
    }

    function withdrawPooled(WithdrawPooled calldata w) external pure returns (bytes32) {
        return PieceworkTypes.hashWithdrawPooled(w);
    }
}
