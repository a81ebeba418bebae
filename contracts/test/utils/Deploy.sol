// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {DisputeTerms, IDisputes} from "../../src/interfaces/IDisputes.sol";
import {IEscrow} from "../../src/interfaces/IEscrow.sol";
import {IEvidenceVerifier} from "../../src/interfaces/IEvidenceVerifier.sol";
import {IWorkerRegistry} from "../../src/interfaces/IWorkerRegistry.sol";
import {Cheats} from "./Vm.sol";

/// @notice Deploys the contracts from the bytes that forge compiled for release. Tests import interfaces only: a test
/// that imported a contract would be compiled through the IR with it.
abstract contract Deploy is Cheats {
    function newEscrow() internal returns (IEscrow) {
        return IEscrow(_create(vm.getCode("Escrow.sol:Escrow")));
    }

    /// @dev This contract becomes the slasher.
    function newRegistry(address token, uint128 minStake, uint64 unbondingDelay)
        internal
        returns (IWorkerRegistry)
    {
        return IWorkerRegistry(_create(registryCode(token, minStake, unbondingDelay)));
    }

    function registryCode(address token, uint128 minStake, uint64 unbondingDelay)
        internal
        view
        returns (bytes memory)
    {
        bytes memory code = vm.getCode("WorkerRegistry.sol:WorkerRegistry");
        return bytes.concat(code, abi.encode(token, minStake, unbondingDelay));
    }

    function newVerifier(IEscrow escrow) internal returns (IEvidenceVerifier) {
        bytes memory code = vm.getCode("EvidenceVerifier.sol:EvidenceVerifier");
        return IEvidenceVerifier(_create(bytes.concat(code, abi.encode(escrow))));
    }

    function newDisputes(DisputeTerms memory terms) internal returns (IDisputes) {
        return IDisputes(_create(bytes.concat(vm.getCode("Disputes.sol:Disputes"), abi.encode(terms))));
    }

    /// @dev Reverts with what the constructor reverted with.
    function _create(bytes memory code) private returns (address created) {
        assembly ("memory-safe") {
            created := create(0, add(code, 0x20), mload(code))
            if iszero(created) {
                returndatacopy(0x00, 0x00, returndatasize())
                revert(0x00, returndatasize())
            }
        }
    }
}
