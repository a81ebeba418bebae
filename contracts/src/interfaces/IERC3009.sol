// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

/// @title EIP-3009, transfer with authorization (https://eips.ethereum.org/EIPS/eip-3009)
/// @notice The v, r, s form of the standard. Only the members that Piecework uses are explained.
interface IERC3009 {
    /// @notice An authorization was used.
    /// @param authorizer whose tokens moved
    /// @param nonce the nonce of the authorization
    event AuthorizationUsed(address indexed authorizer, bytes32 indexed nonce);
    /// @notice An authorization was cancelled before use.
    /// @param authorizer who cancelled it
    /// @param nonce the nonce of the authorization
    event AuthorizationCanceled(address indexed authorizer, bytes32 indexed nonce);

    /// @notice Whether the nonce was used or cancelled.
    /// @param authorizer who signed
    /// @param nonce the nonce of the authorization
    /// @return used true when it can never be used again
    function authorizationState(address authorizer, bytes32 nonce) external view returns (bool used);

    /// @notice Moves `value` from `from` to `to` by the signature of `from`.
    /// @param from whose tokens move
    /// @param to who gets them
    /// @param value base units
    /// @param validAfter block time after which it is valid, exclusive
    /// @param validBefore block time before which it is valid, exclusive
    /// @param nonce any unused value
    /// @param v recovery id of the signature
    /// @param r first half of the signature
    /// @param s second half of the signature
    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;

    /// @notice Like transferWithAuthorization, but only the payee may submit it. So nobody can front-run a contract
    /// that does more than take the money.
    /// @param from whose tokens move
    /// @param to who gets them; must be the caller
    /// @param value base units
    /// @param validAfter block time after which it is valid, exclusive
    /// @param validBefore block time before which it is valid, exclusive
    /// @param nonce any unused value
    /// @param v recovery id of the signature
    /// @param r first half of the signature
    /// @param s second half of the signature
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;

    /// @notice Makes an unused nonce unusable.
    /// @param authorizer whose nonce it is
    /// @param nonce the nonce
    /// @param v recovery id of the signature
    /// @param r first half of the signature
    /// @param s second half of the signature
    function cancelAuthorization(address authorizer, bytes32 nonce, uint8 v, bytes32 r, bytes32 s) external;
}

/// @title The overloads that take a signature of any length (Circle's FiatToken 2.2): for smart accounts
interface IBytesSignatures {
    /// @notice EIP-3009 receiveWithAuthorization with the signature as bytes.
    /// @param from whose tokens move; may be a smart account that checks by ERC-1271
    /// @param to who gets them; must be the caller
    /// @param value base units
    /// @param validAfter block time after which it is valid, exclusive
    /// @param validBefore block time before which it is valid, exclusive
    /// @param nonce any unused value
    /// @param signature what `from` signed with
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;

    /// @notice EIP-2612 permit with the signature as bytes.
    /// @param owner whose allowance it is; may be a smart account that checks by ERC-1271
    /// @param spender who may spend
    /// @param value base units
    /// @param deadline block time after which it is void
    /// @param signature what `owner` signed with
    function permit(address owner, address spender, uint256 value, uint256 deadline, bytes calldata signature)
        external;
}
