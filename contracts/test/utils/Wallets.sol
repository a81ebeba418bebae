// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @notice A smart account with one key (ERC-1271).
contract KeyWallet {
    address public immutable key;

    constructor(address key_) {
        key = key_;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        (address signer,,) = ECDSA.tryRecoverCalldata(digest, signature);
        return signer == key ? this.isValidSignature.selector : bytes4(0);
    }
}

/// @notice Account code that accepts every signature, or none: what a hostile payer may delegate to.
contract AnswerWallet {
    bool private immutable _answer;

    constructor(bool answer) {
        _answer = answer;
    }

    function isValidSignature(bytes32, bytes calldata) external view returns (bytes4) {
        return _answer ? this.isValidSignature.selector : bytes4(0);
    }
}

/// @notice Account code that fails on every call.
contract RevertingWallet {
    fallback() external {
        revert("no");
    }
}

/// @notice A smart account whose signatures are an owner's 65 bytes and a tail, as those of a Safe may be.
contract LongWallet {
    address public immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        if (signature.length != 69) return bytes4(0);
        (address signer,,) = ECDSA.tryRecoverCalldata(digest, signature[:65]);
        return signer == owner ? this.isValidSignature.selector : bytes4(0);
    }
}
