// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

import {PieceworkTypes, Terms} from "./PieceworkTypes.sol";

/// @title The rows of settlePacked: reading, hashing and checking one without touching new memory
/// @notice A row is 192 bytes: payer 20, authorizer 20, salt 32, cumulative 16, count 8, receiptsRoot 32, r 32, vs 32.
/// @dev Assembly, because it pays: abi-encoding the same two structs for each row costs 3,500 gas of 19,000. Tests
/// hold it equal to an independent reading of the bytes and to settle, row by row.
///
/// One buffer serves all rows. What all rows share is written once:
///   0x000 Channel type hash, payer, authorizer, receiver, operator, token, withdrawalDelay, salt  (8 words)
///   0x100 Voucher type hash, channel id, cumulative, count, receiptsRoot                           (5 words)
///   0x1a0 0x1901, domain separator, struct hash                                                    (66 bytes)
///   0x1e2 unused, to the next word
///   0x200 digest, v, r, s for the ecrecover precompile                                             (4 words)
library PackedRows {
    type Buffer is uint256;

    uint256 internal constant ROW_BYTES = 192;
    /// @dev IEscrow.Settled.selector, which compilers before 0.8.22 cannot name from here.
    bytes32 private constant SETTLED = keccak256("Settled(bytes32,address,uint128,uint128,uint64,bytes32)");
    uint256 private constant BUFFER_BYTES = 0x280;

    /// @notice A buffer with everything that the rows share.
    function prepare(Terms calldata terms, bytes32 separator) internal pure returns (Buffer buffer) {
        (bytes32 channelType, bytes32 voucherType) =
            (PieceworkTypes.CHANNEL_TYPEHASH, PieceworkTypes.VOUCHER_TYPEHASH);
        (address receiver, address operator, address token, uint64 delay) =
            (terms.receiver, terms.operator, terms.token, terms.withdrawalDelay);
        assembly ("memory-safe") {
            buffer := mload(0x40)
            mstore(0x40, add(buffer, BUFFER_BYTES))
            mstore(buffer, channelType)
            mstore(add(buffer, 0x060), receiver)
            mstore(add(buffer, 0x080), operator)
            mstore(add(buffer, 0x0a0), token)
            mstore(add(buffer, 0x0c0), delay)
            mstore(add(buffer, 0x100), voucherType)
            mstore(add(buffer, 0x1a0), shl(240, 0x1901))
            mstore(add(buffer, 0x1a2), separator)
        }
    }

    /// @notice Reads the row at `offset` into the buffer. Needs offset + ROW_BYTES <= rows.length.
    /// @return id the channel id
    /// @return cumulative what the voucher says
    function read(Buffer buffer, bytes calldata rows, uint256 offset)
        internal
        pure
        returns (bytes32 id, uint128 cumulative)
    {
        assembly ("memory-safe") {
            let row := add(rows.offset, offset)
            mstore(add(buffer, 0x020), shr(96, calldataload(row)))
            mstore(add(buffer, 0x040), shr(96, calldataload(add(row, 20))))
            mstore(add(buffer, 0x0e0), calldataload(add(row, 40)))
            mstore(add(buffer, 0x1c2), keccak256(buffer, 0x100))
            id := keccak256(add(buffer, 0x1a0), 0x42)
            cumulative := shr(128, calldataload(add(row, 72)))
            mstore(add(buffer, 0x120), id)
            mstore(add(buffer, 0x140), cumulative)
            mstore(add(buffer, 0x160), shr(192, calldataload(add(row, 88))))
            mstore(add(buffer, 0x180), calldataload(add(row, 96)))
        }
    }

    /// @notice Whether the authorizer signed the row that was read last, which is the one at `offset`.
    /// @dev The form of EIP-2098 has 255 bits for s. That leaves no room for the higher twin of a signature, but for
    /// one in 2^127.
    function signed(Buffer buffer, bytes calldata rows, uint256 offset) internal view returns (bool good) {
        assembly ("memory-safe") {
            let row := add(rows.offset, offset)
            let vs := calldataload(add(row, 160))
            mstore(add(buffer, 0x1c2), keccak256(add(buffer, 0x100), 0xa0))
            mstore(add(buffer, 0x200), keccak256(add(buffer, 0x1a0), 0x42))
            mstore(add(buffer, 0x220), add(27, shr(255, vs)))
            mstore(add(buffer, 0x240), calldataload(add(row, 128)))
            mstore(add(buffer, 0x260), shr(1, shl(1, vs)))
            // The precompile returns nothing for a bad signature: then this zero stays.
            mstore(0x00, 0)
            pop(staticcall(gas(), 1, add(buffer, 0x200), 0x80, 0x00, 0x20))
            let signer := mload(0x00)
            // An authorizer of zero cannot open a channel; it is refused here all the same.
            good := and(eq(signer, mload(add(buffer, 0x040))), gt(signer, 0))
        }
    }

    /// @notice Emits IEscrow.Settled for the row that was read last, and spoils the buffer's copy of its id.
    /// @dev The event's data are amount, cumulative, count and root. The last three lie in the buffer in this order.
    function announce(Buffer buffer, bytes32 id, address receiver, uint256 amount) internal {
        bytes32 topic = SETTLED;
        assembly ("memory-safe") {
            mstore(add(buffer, 0x120), amount)
            log3(add(buffer, 0x120), 0x80, topic, id, receiver)
        }
    }
}
