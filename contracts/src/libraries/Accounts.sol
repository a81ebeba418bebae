// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

/// @notice The one storage word of a channel that paying reads: funded, settled, closed, reduced.
type Account is uint256;

using Accounts for Account global;

/// @title A channel's account in one word
/// @dev A value and not a struct in storage, so that every function loads it once and stores it once.
/// Bits 0 to 95 funded, 96 to 191 settled, 192 closed, 193 reduced.
library Accounts {
    uint256 private constant _CLOSED = 1 << 192;
    uint256 private constant _REDUCED = 1 << 193;

    /// @notice Total ever put in.
    function funded(Account account) internal pure returns (uint96) {
        return uint96(Account.unwrap(account));
    }

    /// @notice Paid to the receiver so far.
    function settled(Account account) internal pure returns (uint96) {
        return uint96(Account.unwrap(account) >> 96);
    }

    /// @notice Whether it is closed for good.
    function closed(Account account) internal pure returns (bool) {
        return Account.unwrap(account) & _CLOSED != 0;
    }

    /// @notice Whether some was withdrawn: then the second word says how much.
    function reduced(Account account) internal pure returns (bool) {
        return Account.unwrap(account) & _REDUCED != 0;
    }

    /// @notice The account with `amount` more in it. Needs funded + amount < 2^96.
    function fund(Account account, uint96 amount) internal pure returns (Account) {
        return Account.wrap(Account.unwrap(account) + amount);
    }

    /// @notice The account with `amount` more settled. Needs settled + amount < 2^96.
    function settle(Account account, uint96 amount) internal pure returns (Account) {
        return Account.wrap(Account.unwrap(account) + (uint256(amount) << 96));
    }

    /// @notice The account, closed.
    function close(Account account) internal pure returns (Account) {
        return Account.wrap(Account.unwrap(account) | _CLOSED);
    }

    /// @notice The account, marked as reduced.
    function reduce(Account account) internal pure returns (Account) {
        return Account.wrap(Account.unwrap(account) | _REDUCED);
    }
}
