// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestToken} from "../src/TestToken.sol";
import {DisputeTerms, IDisputes} from "../src/interfaces/IDisputes.sol";
import {IEscrow} from "../src/interfaces/IEscrow.sol";
import {IEvidenceVerifier} from "../src/interfaces/IEvidenceVerifier.sol";
import {IWorkerRegistry} from "../src/interfaces/IWorkerRegistry.sol";
import {Deploy} from "./utils/Deploy.sol";

/// @notice The frozen init code gives the addresses of release/addresses.json, through the canonical factory, and what
/// stands there works. tools/release.py holds the sources equal to the frozen bytes.
contract ReleaseTest is Deploy {
    address private constant FACTORY = 0x4e59b44847b379578588920cA78FbF26c0B4956C;
    /// @dev The whole code of the factory: CREATE2 of the calldata after its first word, which is the salt.
    bytes private constant FACTORY_CODE =
        hex"7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe03601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3";

    string private _addresses;

    function setUp() public {
        vm.etch(FACTORY, FACTORY_CODE);
        _addresses = vm.readFile("release/addresses.json");
    }

    function _frozen(string memory name) private view returns (bytes memory) {
        return vm.parseBytes(vm.trim(vm.readFile(string.concat("release/", name, ".initcode.hex"))));
    }

    function _deploy(bytes memory initCode) private returns (address created) {
        (bool done, bytes memory answer) = FACTORY.call(bytes.concat(bytes32(0), initCode));
        vm.assertTrue(done, "deployed");
        vm.assertEq(answer.length, 20, "an address");
        return address(bytes20(answer));
    }

    function _create2(bytes memory initCode) private pure returns (address) {
        bytes32 hash = keccak256(abi.encodePacked(hex"ff", FACTORY, bytes32(0), keccak256(initCode)));
        return address(uint160(uint256(hash)));
    }

    function test_the_bytes_under_test_are_the_frozen_ones() public view {
        string[4] memory names = ["Escrow", "WorkerRegistry", "EvidenceVerifier", "Disputes"];
        for (uint256 i = 0; i < names.length; ++i) {
            bytes memory built = vm.getCode(string.concat(names[i], ".sol:", names[i]));
            vm.assertEq(keccak256(built), keccak256(_frozen(names[i])), names[i]);
        }
    }

    function test_the_factory_puts_the_escrow_where_everybody_computes_it() public {
        address escrow = _deploy(_frozen("Escrow"));
        vm.assertEq(escrow, vm.parseJsonAddress(_addresses, ".escrow.address"), "in addresses.json");
        vm.assertEq(escrow, _create2(_frozen("Escrow")), "computed");
        vm.assertEq(
            keccak256(_frozen("Escrow")), vm.parseJsonBytes32(_addresses, ".escrow.initCodeHash"), "hash"
        );
        vm.assertEq(IEscrow(escrow).MIN_WITHDRAWAL_DELAY(), 60, "it answers");
        vm.assertTrue(escrow.code.length < 24_576, "fits");
    }

    function test_the_factory_puts_the_registry_where_its_terms_say() public {
        string memory terms = ".registry.example.terms";
        address token = vm.parseJsonAddress(_addresses, string.concat(terms, ".token"));
        vm.etch(token, address(new TestToken()).code);
        bytes memory initCode = bytes.concat(
            _frozen("WorkerRegistry"),
            abi.encode(
                token,
                vm.parseJsonUint(_addresses, string.concat(terms, ".min_stake")),
                vm.parseJsonUint(_addresses, string.concat(terms, ".unbonding_seconds"))
            )
        );
        address registry = _deploy(initCode);
        vm.assertEq(
            registry, vm.parseJsonAddress(_addresses, ".registry.example.address"), "in addresses.json"
        );
        vm.assertEq(registry, _create2(initCode), "computed");
        vm.assertEq(IWorkerRegistry(registry).slasher(), FACTORY, "the slasher can only deploy");
    }

    function test_the_factory_puts_disputes_with_their_registry_where_their_terms_say() public {
        address escrow = _deploy(_frozen("Escrow"));
        address verifier = _deploy(bytes.concat(_frozen("EvidenceVerifier"), abi.encode(escrow)));
        vm.assertEq(verifier, vm.parseJsonAddress(_addresses, ".verifier.address"), "verifier");
        IDisputes disputes =
            IDisputes(_deploy(bytes.concat(_frozen("Disputes"), abi.encode(_terms(verifier)))));
        string memory example = ".disputes.example";
        vm.assertEq(
            address(disputes), vm.parseJsonAddress(_addresses, string.concat(example, ".address")), "disputes"
        );
        IWorkerRegistry registry = disputes.registry();
        vm.assertEq(
            address(registry),
            vm.parseJsonAddress(_addresses, string.concat(example, ".registry")),
            "registry"
        );
        vm.assertEq(registry.slasher(), address(disputes), "slasher");
        vm.assertTrue(address(disputes).code.length < 24_576, "fits");
        vm.assertTrue(verifier.code.length < 24_576, "fits");
        vm.assertTrue(_frozen("Disputes").length < 2 * 24_576, "the init code fits");
    }

    function _terms(address verifier) private returns (DisputeTerms memory t) {
        string memory terms = ".disputes.example.terms";
        t.verifier = IEvidenceVerifier(verifier);
        t.stakeToken = vm.parseJsonAddress(_addresses, string.concat(terms, ".token"));
        vm.etch(t.stakeToken, address(new TestToken()).code);
        t.minStake = uint128(vm.parseJsonUint(_addresses, string.concat(terms, ".min_stake")));
        t.unbondingDelay = uint64(vm.parseJsonUint(_addresses, string.concat(terms, ".unbonding_seconds")));
        t.provingCost = uint128(vm.parseJsonUint(_addresses, string.concat(terms, ".proving_cost")));
        t.minBond = uint96(vm.parseJsonUint(_addresses, string.concat(terms, ".min_bond_wei")));
        t.verdictFee = uint128(vm.parseJsonUint(_addresses, string.concat(terms, ".verdict_fee")));
    }

    function test_the_factory_deploys_the_escrow_once() public {
        _deploy(_frozen("Escrow"));
        (bool done,) = FACTORY.call(bytes.concat(bytes32(0), _frozen("Escrow")));
        vm.assertTrue(!done, "a second time");
    }
}
