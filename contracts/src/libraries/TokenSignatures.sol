// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {IBytesSignatures, IERC3009} from "../interfaces/IERC3009.sol";

/// @title Calls to a token with a signature of any length
/// @dev 65 bytes go to the v, r, s form, which every token of the standard has. Any other length goes to the overload
/// that takes bytes, which tokens for smart accounts have.
library TokenSignatures {
    bytes32 internal constant PERMIT_TYPEHASH =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");

    /// @notice An EIP-3009 authorization to this contract.
    struct Authorization {
        address from;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }

    /// @notice Takes the tokens of an authorization. Reverts as the token does.
    function receiveWithAuthorization(address token, Authorization memory a, bytes calldata signature)
        internal
    {
        if (signature.length != 65) {
            IBytesSignatures(token)
                .receiveWithAuthorization(
                    a.from, address(this), a.value, a.validAfter, a.validBefore, a.nonce, signature
                );
            return;
        }
        (uint8 v, bytes32 r, bytes32 s) = _split(signature);
        IERC3009(token)
            .receiveWithAuthorization(
                a.from, address(this), a.value, a.validAfter, a.validBefore, a.nonce, v, r, s
            );
    }

    /// @notice Tries the permit of `owner` for this contract. It fails when somebody submitted it first: then the
    /// allowance is there already. Some tokens accept any call, so success proves nothing either.
    function tryPermit(
        address token,
        address owner,
        uint256 value,
        uint256 deadline,
        bytes calldata signature
    ) internal {
        if (signature.length != 65) {
            try IBytesSignatures(token).permit(owner, address(this), value, deadline, signature) {} catch {}
            return;
        }
        (uint8 v, bytes32 r, bytes32 s) = _split(signature);
        try IERC20Permit(token).permit(owner, address(this), value, deadline, v, r, s) {} catch {}
    }

    /// @notice What `owner` signed for the permit that it used up last. Needs `nonces` above zero.
    function lastPermitDigest(address token, address owner, uint256 value, uint256 nonces, uint256 deadline)
        internal
        view
        returns (bytes32)
    {
        bytes32 structHash =
            keccak256(abi.encode(PERMIT_TYPEHASH, owner, address(this), value, nonces - 1, deadline));
        return keccak256(abi.encodePacked(hex"1901", IERC20Permit(token).DOMAIN_SEPARATOR(), structHash));
    }

    function _split(bytes calldata signature) private pure returns (uint8 v, bytes32 r, bytes32 s) {
        return (uint8(signature[64]), bytes32(signature[0:32]), bytes32(signature[32:64]));
    }
}
