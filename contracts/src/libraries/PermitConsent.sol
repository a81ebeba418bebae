// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

/// @title Did the owner sign the permit that the token used up last?
/// @notice A permit may be front-run (so a failed `permit` call proves nothing) and some tokens accept any call
/// in a fallback (so a successful one proves nothing either). The owner's signature over the last nonce does.
library PermitConsent {
    bytes32 internal constant PERMIT_TYPEHASH =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");

    struct Permit {
        address owner;
        uint256 value;
        uint256 deadline;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    /// @notice True when `p` is the owner's permit for this contract at the token's last used nonce.
    function isLastUsed(address token, Permit memory p) internal view returns (bool) {
        uint256 nonce = IERC20Permit(token).nonces(p.owner);
        if (nonce == 0) return false;
        bytes32 structHash =
            keccak256(abi.encode(PERMIT_TYPEHASH, p.owner, address(this), p.value, nonce - 1, p.deadline));
        bytes32 digest = MessageHashUtils.toTypedDataHash(IERC20Permit(token).DOMAIN_SEPARATOR(), structHash);
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecover(digest, p.v, p.r, p.s);
        return failure == ECDSA.RecoverError.NoError && signer == p.owner;
    }
}
