// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IEscrow} from "../src/interfaces/IEscrow.sol";
import {IWorkerRegistry, Registration} from "../src/interfaces/IWorkerRegistry.sol";
import {AuditReport, EvidenceTypes, Verdict} from "../src/libraries/EvidenceTypes.sol";
import {MerkleProof} from "../src/libraries/MerkleProof.sol";
import {Endpoint, ModelOffer, Offer, OfferTypes} from "../src/libraries/OfferTypes.sol";
import {
    Channel,
    Job,
    Parameters,
    PieceworkTypes,
    Receipt,
    WithdrawPooled
} from "../src/libraries/PieceworkTypes.sol";
import {RegistrationTypes} from "../src/libraries/RegistrationTypes.sol";
import {Deploy} from "./utils/Deploy.sol";
import {Hashes} from "./utils/Hashes.sol";
import {MerkleTree} from "./utils/MerkleTree.sol";

/// @notice Reads the golden vectors that the Python side wrote and recomputes every type hash, digest and root. Escrow
/// and registry stand at the vectors' addresses and chain, so that the separators and the channel id are the deployed
/// code's own.
contract VectorsTest is Deploy {
    string private _json;
    IEscrow private _escrow;
    Hashes private _hashes;
    mapping(bytes32 typeName => uint256) private _seen;
    mapping(bytes32 domainName => bytes32) private _separators;
    mapping(bytes32 typeName => bytes32) private _typeHashes;

    function setUp() public {
        _hashes = new Hashes();
        _knowTypes();
    }

    function test_every_signed_object_has_the_digest_that_python_computed() public {
        _json = vm.readFile("../tests/vectors/eip712.json");
        _standAtTheVectorsAddresses();
        uint256 count = 0;
        for (; vm.keyExistsJson(_json, _case(count)); ++count) {
            _checkCase(_case(count));
        }
        string[15] memory types = _types();
        for (uint256 i = 0; i < types.length; ++i) {
            vm.assertTrue(_seen[_name(types[i])] > 0, string.concat("no vector for ", types[i]));
        }
    }

    function _types() private pure returns (string[15] memory) {
        return [
            "Channel",
            "FundChannel",
            "Voucher",
            "CloseChannel",
            "RequestWithdrawal",
            "CancelWithdrawal",
            "WithdrawPooled",
            "AccountRequest",
            "Job",
            "Acceptance",
            "Receipt",
            "Offer",
            "Registration",
            "AuditReport",
            "Verdict"
        ];
    }

    function _knowTypes() private {
        _typeHashes[_name("Channel")] = PieceworkTypes.CHANNEL_TYPEHASH;
        _typeHashes[_name("FundChannel")] = PieceworkTypes.FUND_CHANNEL_TYPEHASH;
        _typeHashes[_name("Voucher")] = PieceworkTypes.VOUCHER_TYPEHASH;
        _typeHashes[_name("CloseChannel")] = PieceworkTypes.CLOSE_CHANNEL_TYPEHASH;
        _typeHashes[_name("RequestWithdrawal")] = PieceworkTypes.REQUEST_WITHDRAWAL_TYPEHASH;
        _typeHashes[_name("CancelWithdrawal")] = PieceworkTypes.CANCEL_WITHDRAWAL_TYPEHASH;
        _typeHashes[_name("WithdrawPooled")] = PieceworkTypes.WITHDRAW_POOLED_TYPEHASH;
        _typeHashes[_name("AccountRequest")] = PieceworkTypes.ACCOUNT_REQUEST_TYPEHASH;
        _typeHashes[_name("Job")] = PieceworkTypes.JOB_TYPEHASH;
        _typeHashes[_name("Acceptance")] = PieceworkTypes.ACCEPTANCE_TYPEHASH;
        _typeHashes[_name("Receipt")] = PieceworkTypes.RECEIPT_TYPEHASH;
        _typeHashes[_name("Offer")] = OfferTypes.OFFER_TYPEHASH;
        _typeHashes[_name("Registration")] = RegistrationTypes.REGISTRATION_TYPEHASH;
        _typeHashes[_name("AuditReport")] = EvidenceTypes.AUDIT_REPORT_TYPEHASH;
        _typeHashes[_name("Verdict")] = EvidenceTypes.VERDICT_TYPEHASH;
    }

    /// @dev There is no dispute contract yet: its separator is computed from the vectors' domain.
    function _standAtTheVectorsAddresses() private {
        vm.chainId(vm.parseJsonUint(_json, ".domain.chainId"));
        _escrow = IEscrow(vm.parseJsonAddress(_json, ".domain.verifyingContract"));
        vm.etch(address(_escrow), address(newEscrow()).code);
        vm.assertEq(_escrow.DOMAIN_SEPARATOR(), vm.parseJsonBytes32(_json, ".domain.separator"), "separator");
        string[3] memory names = ["Piecework", "Piecework Registry", "Piecework Disputes"];
        for (uint256 i = 0; i < names.length; ++i) {
            string memory node = string.concat('.domains["', names[i], '"]');
            address stands = _a(node, ".verifyingContract");
            bytes32 separator = _separator(names[i], stands);
            if (i == 0) vm.assertEq(separator, IEscrow(stands).DOMAIN_SEPARATOR(), "the escrow's own");
            if (i == 1) {
                vm.etch(stands, address(newRegistry(address(_hashes), 1, 7 days)).code);
                vm.assertEq(separator, IWorkerRegistry(stands).DOMAIN_SEPARATOR(), "the registry's own");
            }
            vm.assertEq(separator, _b32(node, ".separator"), names[i]);
            _separators[_name(names[i])] = separator;
        }
    }

    function _separator(string memory name, address stands) private view returns (bytes32) {
        bytes32 domainType =
            keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
        return keccak256(abi.encode(domainType, _name(name), _name("2"), block.chainid, stands));
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
        bytes32 typeHash = _typeHashes[_name(name)];
        vm.assertEq(typeHash, _b32(node, ".typeHash"), string.concat("typeHash of ", name));
        vm.assertEq(typeHash, _name(_s(node, ".typeString")), string.concat("typeString of ", name));
        bytes32 structHash = _structHash(_name(name), name, string.concat(node, ".message"));
        vm.assertEq(structHash, _b32(node, ".structHash"), string.concat("structHash of ", name, " ", node));
        bytes32 separator = _separators[_name(_s(node, ".domain"))];
        vm.assertTrue(separator != 0, string.concat("domain of ", name));
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", separator, structHash));
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
        if (kind == _name("FundChannel")) return _fundChannel(m);
        if (kind == _name("Voucher")) return _voucher(m);
        if (kind == _name("CloseChannel")) return _closeChannel(m);
        if (kind == _name("RequestWithdrawal")) return _requestWithdrawal(m);
        if (kind == _name("CancelWithdrawal")) {
            return PieceworkTypes.hashCancelWithdrawal(
                _b32(m, ".channel"), uint64(_u(m, ".nonce")), uint64(_u(m, ".deadline"))
            );
        }
        if (kind == _name("WithdrawPooled")) return _hashes.withdrawPooled(_withdrawPooled(m));
        if (kind == _name("AccountRequest")) {
            return PieceworkTypes.hashAccountRequest(_b32(m, ".channel"), uint64(_u(m, ".deadline")));
        }
        if (kind == _name("Job")) return PieceworkTypes.hashJob(_job(m));
        if (kind == _name("Receipt")) return PieceworkTypes.hashReceipt(_receipt(m));
        if (kind == _name("Acceptance")) {
            return PieceworkTypes.hashAcceptance(
                _b32(m, ".job"), uint32(_u(m, ".promptTokens")), uint64(_u(m, ".acceptedAt"))
            );
        }
        if (kind == _name("Offer")) return OfferTypes.hashOffer(_offer(m));
        if (kind == _name("Registration")) return RegistrationTypes.hashRegistration(_registration(m));
        if (kind == _name("AuditReport")) return EvidenceTypes.hashAuditReport(_auditReport(m));
        if (kind == _name("Verdict")) return EvidenceTypes.hashVerdict(_verdict(m));
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

    function _fundChannel(string memory m) private view returns (bytes32) {
        return _hashes.fundChannel(
            _channel(string.concat(m, ".channel")),
            uint128(_u(m, ".funded")),
            uint128(_u(m, ".fee")),
            uint64(_u(m, ".deadline"))
        );
    }

    function _voucher(string memory m) private view returns (bytes32) {
        return PieceworkTypes.hashVoucher(
            _b32(m, ".channel"),
            uint128(_u(m, ".cumulative")),
            uint64(_u(m, ".count")),
            _b32(m, ".receiptsRoot")
        );
    }

    function _closeChannel(string memory m) private view returns (bytes32) {
        return PieceworkTypes.hashCloseChannel(
            _b32(m, ".channel"),
            uint128(_u(m, ".cumulative")),
            uint64(_u(m, ".count")),
            _b32(m, ".receiptsRoot"),
            uint128(_u(m, ".fee"))
        );
    }

    function _requestWithdrawal(string memory m) private view returns (bytes32) {
        return PieceworkTypes.hashRequestWithdrawal(
            _b32(m, ".channel"),
            uint128(_u(m, ".amount")),
            uint64(_u(m, ".nonce")),
            uint64(_u(m, ".deadline"))
        );
    }

    function _withdrawPooled(string memory m) private view returns (WithdrawPooled memory) {
        return WithdrawPooled({
            owner: _a(m, ".owner"),
            token: _a(m, ".token"),
            amount: uint128(_u(m, ".amount")),
            to: _a(m, ".to"),
            fee: uint128(_u(m, ".fee")),
            nonce: uint64(_u(m, ".nonce")),
            deadline: uint64(_u(m, ".deadline"))
        });
    }

    function _registration(string memory m) private view returns (Registration memory) {
        return Registration({
            operator: _a(m, ".operator"),
            owner: _a(m, ".owner"),
            payout: _a(m, ".payout"),
            stake: uint128(_u(m, ".stake")),
            endpoint: _s(m, ".endpoint"),
            nonce: uint64(_u(m, ".nonce")),
            deadline: uint64(_u(m, ".deadline"))
        });
    }

    function _auditReport(string memory m) private view returns (AuditReport memory) {
        return AuditReport({
            receipt: _b32(m, ".receipt"),
            level: uint8(_u(m, ".level")),
            outcome: uint8(_u(m, ".outcome")),
            rule: uint16(_u(m, ".rule")),
            step: uint32(_u(m, ".step")),
            score: uint64(_u(m, ".score")),
            threshold: uint64(_u(m, ".threshold")),
            evidence: _b32(m, ".evidence"),
            profile: _b32(m, ".profile")
        });
    }

    function _verdict(string memory m) private view returns (Verdict memory) {
        return Verdict({
            challenge: _b32(m, ".challenge"),
            guilty: vm.parseJsonBool(_json, string.concat(m, ".guilty")),
            leafRoot: _b32(m, ".leafRoot"),
            deadline: uint64(_u(m, ".deadline"))
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
        j.entry = uint32(_u(m, ".entry"));
        j.model = _b32(m, ".model");
        j.kind = uint8(_u(m, ".kind"));
        j.content = _b32(m, ".content");
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
        r.totalPromptTokens = uint32(_u(m, ".totalPromptTokens"));
        r.totalUnits = uint32(_u(m, ".totalUnits"));
        r.totalSteps = uint32(_u(m, ".totalSteps"));
        r.totalAmount = uint128(_u(m, ".totalAmount"));
        r.previous = _b32(m, ".previous");
    }

    function _model(string memory m) private view returns (ModelOffer memory o) {
        o.name = _s(m, ".name");
        o.digest = _b32(m, ".digest");
        o.profile = _s(m, ".profile");
        o.kinds = uint32(_u(m, ".kinds"));
        o.service = uint8(_u(m, ".service"));
        o.pricePerMillionPromptTokens = uint128(_u(m, ".pricePerMillionPromptTokens"));
        o.pricePerMillionOutputTokens = uint128(_u(m, ".pricePerMillionOutputTokens"));
        o.pricePerThousandSteps = uint128(_u(m, ".pricePerThousandSteps"));
        o.maxContext = uint32(_u(m, ".maxContext"));
        o.maxOutput = uint32(_u(m, ".maxOutput"));
        o.canvasSize = uint32(_u(m, ".canvasSize"));
        o.maxSteps = uint32(_u(m, ".maxSteps"));
        o.tokensPerSecond = uint32(_u(m, ".tokensPerSecond"));
        o.firstCanvasMs = uint32(_u(m, ".firstCanvasMs"));
    }

    function _count(string memory path) private view returns (uint256 count) {
        while (vm.keyExistsJson(_json, _at(path, count))) ++count;
    }

    function _offer(string memory m) private view returns (Offer memory o) {
        o.operator = _a(m, ".operator");
        o.receiver = _a(m, ".receiver");
        o.sequence = uint64(_u(m, ".sequence"));
        o.issuedAt = uint64(_u(m, ".issuedAt"));
        o.expiresAt = uint64(_u(m, ".expiresAt"));
        o.tlsCertificate = _b32(m, ".tlsCertificate");
        o.sealingKey = _b32(m, ".sealingKey");
        o.tokens = vm.parseJsonAddressArray(_json, string.concat(m, ".tokens"));
        o.endpoints = new Endpoint[](_count(string.concat(m, ".endpoints")));
        for (uint256 i = 0; i < o.endpoints.length; ++i) {
            string memory e = _at(string.concat(m, ".endpoints"), i);
            o.endpoints[i] = Endpoint(uint8(_u(e, ".route")), _s(e, ".address"));
        }
        o.models = new ModelOffer[](_count(string.concat(m, ".models")));
        for (uint256 i = 0; i < o.models.length; ++i) {
            o.models[i] = _model(_at(string.concat(m, ".models"), i));
        }
        _offerTerms(m, o);
    }

    function _offerTerms(string memory m, Offer memory o) private view {
        o.slots = uint32(_u(m, ".slots"));
        o.slotsFree = uint32(_u(m, ".slotsFree"));
        o.queueFree = uint32(_u(m, ".queueFree"));
        o.creditFirst = uint128(_u(m, ".creditFirst"));
        o.creditMined = uint128(_u(m, ".creditMined"));
        o.creditMax = uint128(_u(m, ".creditMax"));
        o.openFee = uint128(_u(m, ".openFee"));
        o.topUpFee = uint128(_u(m, ".topUpFee"));
        o.closeFee = uint128(_u(m, ".closeFee"));
        o.minTopUp = uint128(_u(m, ".minTopUp"));
        o.minWithdrawalDelay = uint64(_u(m, ".minWithdrawalDelay"));
        o.minDeposit = uint128(_u(m, ".minDeposit"));
        o.evidenceSeconds = uint64(_u(m, ".evidenceSeconds"));
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
