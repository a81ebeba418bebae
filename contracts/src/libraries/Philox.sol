// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

/// @title The randomness of a canvas: Philox4x32-10 of Salmon, Moraes, Dror and Shaw (SC'11)
/// @notice A draw is a function of (seed, canvas, step, position, purpose) only. Golden vectors hold it equal to the
/// engine's.
library Philox {
    uint32 internal constant INITIAL = 0;
    uint32 internal constant RENOISE = 2;

    uint256 private constant _MASK = 0xffffffff;
    uint256 private constant _M0 = 0xD2511F53;
    uint256 private constant _M1 = 0xCD9E8D57;
    uint256 private constant _W0 = 0x9E3779B9;
    uint256 private constant _W1 = 0xBB67AE85;

    /// @notice Word 0 of the output for the counter (canvas, step, position, purpose) under the key `seed`.
    function draw(uint64 seed, uint32 canvas, uint32 step, uint32 position, uint32 purpose)
        internal
        pure
        returns (uint256)
    {
        uint256[4] memory x = [uint256(canvas), step, position, purpose];
        // Nothing overflows: words are below 2^32, and products of two of them below 2^64.
        unchecked {
            uint256 k0 = uint256(seed) & _MASK;
            uint256 k1 = uint256(seed) >> 32;
            for (uint256 round = 0; round < 10; ++round) {
                uint256 first = _M0 * x[0];
                uint256 second = _M1 * x[2];
                (x[0], x[1], x[2], x[3]) =
                ((second >> 32) ^ x[1] ^ k0, second & _MASK, (first >> 32) ^ x[3] ^ k1, first & _MASK);
                k0 = (k0 + _W0) & _MASK;
                k1 = (k1 + _W1) & _MASK;
            }
        }
        return x[0];
    }

    /// @notice The random token id below `vocabulary` that a draw gives.
    function token(uint256 drawn, uint32 vocabulary) internal pure returns (uint32) {
        return uint32((drawn * vocabulary) >> 32);
    }
}
