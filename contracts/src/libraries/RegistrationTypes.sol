// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

import {Registration} from "../interfaces/IWorkerRegistry.sol";

/// @title EIP-712 hash of a registration, under the registry's domain ("Piecework Registry", "2")
library RegistrationTypes {
    string internal constant REGISTRATION_TYPE =
        "Registration(address operator,address owner,address payout,uint128 stake,string endpoint,uint64 nonce,uint64 deadline)";

    bytes32 internal constant REGISTRATION_TYPEHASH = keccak256(bytes(REGISTRATION_TYPE));

    function hashRegistration(Registration memory r) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                REGISTRATION_TYPEHASH,
                r.operator,
                r.owner,
                r.payout,
                r.stake,
                keccak256(bytes(r.endpoint)),
                r.nonce,
                r.deadline
            )
        );
    }
}
