// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Escrow} from "../src/Escrow.sol";
import {MerkleProof} from "../src/libraries/MerkleProof.sol";
import {Channel, Job, Parameters, PieceworkTypes, Receipt} from "../src/libraries/PieceworkTypes.sol";
import {Hashes} from "./utils/Hashes.sol";
import {MerkleTree} from "./utils/MerkleTree.sol";
import {ModelOffer, Offer, OfferHash} from "./utils/OfferHash.sol";
import {Cheats} from "./utils/Vm.sol";

/// @notice Reads the golden vectors that the Python side wrote and recomputes every digest and root. The escrow stands
/// at the vectors' address and chain, so that the separator and the channel id are the deployed code's own.
contract VectorsTest is Cheats {
    string private _json;
    Escrow private _escrow;
    Hashes private _hashes;
    mapping(bytes32 typeName => uint256) private _seen;

    function setUp() public {
        _hashes = new Hashes();
    }

    function test_every_signed_object_has_the_digest_that_python_computed() public {
        _json = vm.readFile("../tests/vectors/eip712.json");
        _escrow = Escrow(vm.parseJsonAddress(_json, ".domain.verifyingContract"));
        vm.chainId(vm.parseJsonUint(_json, ".domain.chainId"));
        vm.etch(address(_escrow), address(new Escrow()).code);
        uint256 count = 0;
        for (; vm.keyExistsJson(_json, _case(count)); ++count) {
            _checkCase(_case(count));
        }
        vm.assertTrue(count > 0, "no cases");
        string[8] memory types = [
            "Channel",
            "FundChannel",
            "Voucher",
            "CloseChannel",
            "RequestWithdrawal",
            "Job",
            "Receipt",
            "Offer"
        ];
        for (uint256 i = 0; i < types.length; ++i) {
            vm.assertTrue(_seen[_name(types[i])] > 0, string.concat("no vector for ", types[i]));
        }
    }

    function test_every_merkle_root_and_proof_is_the_one_that_python_computed() public {
        _json = vm.readFile("../tests/vectors/merkle.json");
        uint256 count = 0;
        for (; vm.keyExistsJson(_json, _case(count)); ++count) {
            string memory node = _case(count);
            bytes32[] memory leaves = vm.parseJsonBytes32Array(_json, string.concat(node, ".leaves"));
            bytes32 root = _b32(node, ".root");
            vm.assertEq(MerkleTree.root(leaves), root, string.concat("root of ", node));
            _checkProofs(node, leaves, root);
        }
        vm.assertTrue(count > 0, "no cases");
    }

    // ------------------------------------------------------------------ cases

    function _checkProofs(string memory node, bytes32[] memory leaves, bytes32 root) private view {
        uint256 i = 0;
        for (; vm.keyExistsJson(_json, _at(string.concat(node, ".proofs"), i)); ++i) {
            string memory proof = _at(string.concat(node, ".proofs"), i);
            uint64 index = uint64(_u(proof, ".index"));
            uint64 size = uint64(_u(proof, ".count"));
            bytes32[] memory siblings = vm.parseJsonBytes32Array(_json, string.concat(proof, ".siblings"));
            vm.assertEq(size, leaves.length, string.concat("count of ", proof));
            vm.assertTrue(MerkleProof.verify(root, leaves[index], index, size, siblings), proof);
            vm.assertTrue(!MerkleProof.verify(root, ~leaves[index], index, size, siblings), proof);
        }
        vm.assertTrue(i > 0 || leaves.length == 0, string.concat("no proofs in ", node));
    }

    function _checkCase(string memory node) private {
        string memory name = _s(node, ".type");
        bytes32 structHash = _structHash(_name(name), name, string.concat(node, ".message"));
        vm.assertEq(structHash, _b32(node, ".structHash"), string.concat("structHash of ", name, " ", node));
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", _escrow.DOMAIN_SEPARATOR(), structHash));
        vm.assertEq(digest, _b32(node, ".digest"), string.concat("digest of ", name, " ", node));
        if (_name(name) == _name("Channel")) {
            vm.assertEq(_escrow.channelId(_channel(string.concat(node, ".message"))), digest, "channel id");
        }
        if (vm.keyExistsJson(_json, string.concat(node, ".signature"))) {
            bytes memory signature = vm.parseJsonBytes(_json, string.concat(node, ".signature"));
            vm.assertEq(
                ECDSA.recover(digest, signature), _a(node, ".signer"), string.concat("signer of ", node)
            );
        }
        ++_seen[_name(name)];
    }

    /// @dev A type that this file does not know fails the test: a new object needs its Solidity twin.
    function _structHash(bytes32 kind, string memory name, string memory m) private view returns (bytes32) {
        if (kind == _name("Channel")) return _hashes.channel(_channel(m));
        if (kind == _name("FundChannel")) {
            return _hashes.fundChannel(
                _channel(string.concat(m, ".channel")), uint128(_u(m, ".deposit")), uint64(_u(m, ".deadline"))
            );
        }
        if (kind == _name("Voucher")) {
            return PieceworkTypes.hashVoucher(
                _b32(m, ".channel"),
                uint128(_u(m, ".cumulative")),
                uint64(_u(m, ".count")),
                _b32(m, ".receiptsRoot")
            );
        }
        if (kind == _name("CloseChannel")) {
            return PieceworkTypes.hashCloseChannel(
                _b32(m, ".channel"),
                uint128(_u(m, ".cumulative")),
                uint64(_u(m, ".count")),
                _b32(m, ".receiptsRoot")
            );
        }
        if (kind == _name("RequestWithdrawal")) {
            return PieceworkTypes.hashRequestWithdrawal(_b32(m, ".channel"), uint64(_u(m, ".deadline")));
        }
        if (kind == _name("Parameters")) return PieceworkTypes.hashParameters(_parameters(m));
        if (kind == _name("Job")) return PieceworkTypes.hashJob(_job(m));
        if (kind == _name("Receipt")) return PieceworkTypes.hashReceipt(_receipt(m));
        if (kind == _name("ModelOffer")) return OfferHash.hashModel(_model(m));
        if (kind == _name("Offer")) return OfferHash.hashOffer(_offer(m));
        if (kind == _name("Acceptance")) {
            return OfferHash.hashAcceptance(_b32(m, ".job"), uint32(_u(m, ".promptTokens")));
        }
        revert(string.concat("no Solidity twin for ", name));
    }

    // ------------------------------------------------------------------ messages

    function _channel(string memory m) private view returns (Channel memory) {
        return Channel({
            payer: _a(m, ".payer"),
            authorizer: _a(m, ".authorizer"),
            receiver: _a(m, ".receiver"),
            operator: _a(m, ".operator"),
            token: _a(m, ".token"),
            withdrawalDelay: uint64(_u(m, ".withdrawalDelay")),
            salt: _b32(m, ".salt")
        });
    }

    function _parameters(string memory m) private view returns (Parameters memory) {
        return Parameters({
            seed: uint64(_u(m, ".seed")),
            maxTokens: uint32(_u(m, ".maxTokens")),
            maxSteps: uint32(_u(m, ".maxSteps")),
            temperatureStart: uint32(_u(m, ".temperatureStart")),
            temperatureEnd: uint32(_u(m, ".temperatureEnd")),
            entropyBound: uint32(_u(m, ".entropyBound")),
            confidenceThreshold: uint32(_u(m, ".confidenceThreshold")),
            stabilitySteps: uint32(_u(m, ".stabilitySteps")),
            service: uint8(_u(m, ".service"))
        });
    }

    function _job(string memory m) private view returns (Job memory j) {
        j.channel = _b32(m, ".channel");
        j.salt = _b32(m, ".salt");
        j.offer = _b32(m, ".offer");
        j.model = _b32(m, ".model");
        j.prompt = _b32(m, ".prompt");
        j.parameters = _parameters(string.concat(m, ".parameters"));
        j.maxAmount = uint128(_u(m, ".maxAmount"));
        j.deadline = uint64(_u(m, ".deadline"));
        j.replyKey = _b32(m, ".replyKey");
    }

    function _receipt(string memory m) private view returns (Receipt memory r) {
        r.job = _b32(m, ".job");
        r.canvas = uint32(_u(m, ".canvas"));
        r.outputDigest = _b32(m, ".outputDigest");
        r.traceRoot = _b32(m, ".traceRoot");
        r.steps = uint32(_u(m, ".steps"));
        r.units = uint32(_u(m, ".units"));
        r.amount = uint128(_u(m, ".amount"));
        r.finish = uint8(_u(m, ".finish"));
        r.previous = _b32(m, ".previous");
    }

    function _model(string memory m) private view returns (ModelOffer memory o) {
        o.name = _s(m, ".name");
        o.digest = _b32(m, ".digest");
        o.profile = _s(m, ".profile");
        o.pricePerMillionPromptTokens = uint128(_u(m, ".pricePerMillionPromptTokens"));
        o.pricePerMillionOutputTokens = uint128(_u(m, ".pricePerMillionOutputTokens"));
        o.pricePerThousandSteps = uint128(_u(m, ".pricePerThousandSteps"));
        o.maxContext = uint32(_u(m, ".maxContext"));
        o.maxOutput = uint32(_u(m, ".maxOutput"));
        o.canvasSize = uint32(_u(m, ".canvasSize"));
        o.maxSteps = uint32(_u(m, ".maxSteps"));
        o.tokensPerSecond = uint32(_u(m, ".tokensPerSecond"));
        o.firstCanvasMs = uint32(_u(m, ".firstCanvasMs"));
        o.service = uint8(_u(m, ".service"));
    }

    function _offer(string memory m) private view returns (Offer memory o) {
        o.operator = _a(m, ".operator");
        o.receiver = _a(m, ".receiver");
        o.sequence = uint64(_u(m, ".sequence"));
        o.issuedAt = uint64(_u(m, ".issuedAt"));
        o.expiresAt = uint64(_u(m, ".expiresAt"));
        o.endpoint = _s(m, ".endpoint");
        o.tlsCertificate = _b32(m, ".tlsCertificate");
        o.sealingKey = _b32(m, ".sealingKey");
        o.tokens = vm.parseJsonAddressArray(_json, string.concat(m, ".tokens"));
        uint256 count = 0;
        while (vm.keyExistsJson(_json, _at(string.concat(m, ".models"), count))) ++count;
        o.models = new ModelOffer[](count);
        for (uint256 i = 0; i < count; ++i) {
            o.models[i] = _model(_at(string.concat(m, ".models"), i));
        }
        o.slots = uint32(_u(m, ".slots"));
        o.slotsFree = uint32(_u(m, ".slotsFree"));
        o.queueFree = uint32(_u(m, ".queueFree"));
        o.creditWindow = uint32(_u(m, ".creditWindow"));
        o.minWithdrawalDelay = uint64(_u(m, ".minWithdrawalDelay"));
        o.minDeposit = uint128(_u(m, ".minDeposit"));
        o.details = _s(m, ".details");
    }

    // ------------------------------------------------------------------ JSON

    function _case(uint256 index) private pure returns (string memory) {
        return _at(".cases", index);
    }

    function _at(string memory path, uint256 index) private pure returns (string memory) {
        return string.concat(path, "[", vm.toString(index), "]");
    }

    function _name(string memory text) private pure returns (bytes32) {
        return keccak256(bytes(text));
    }

    function _u(string memory node, string memory key) private view returns (uint256) {
        return vm.parseJsonUint(_json, string.concat(node, key));
    }

    function _a(string memory node, string memory key) private view returns (address) {
        return vm.parseJsonAddress(_json, string.concat(node, key));
    }

    function _b32(string memory node, string memory key) private view returns (bytes32) {
        return vm.parseJsonBytes32(_json, string.concat(node, key));
    }

    function _s(string memory node, string memory key) private view returns (string memory) {
        return vm.parseJsonString(_json, string.concat(node, key));
    }
}
