// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IEscrow} from "./interfaces/IEscrow.sol";
import {
    Challenge,
    Fault,
    IEvidenceVerifier,
    JobOfChannel,
    SignedAcceptance,
    SignedReceipt
} from "./interfaces/IEvidenceVerifier.sol";
import {PieceworkTypes} from "./libraries/PieceworkTypes.sol";
import {OfferOpening, ReceiptRules} from "./libraries/ReceiptRules.sol";
import {TraceLeaves} from "./libraries/TraceLeaves.sol";
import {TraceProof, TraceRules} from "./libraries/TraceRules.sol";

/// @title EvidenceVerifier (promises: IEvidenceVerifier)
/// @dev A contract beside Disputes, because both together are larger than the EVM takes.
contract EvidenceVerifier is IEvidenceVerifier {
    /// @inheritdoc IEvidenceVerifier
    IEscrow public immutable escrow;

    /// @param escrow_ the escrow whose objects are judged
    constructor(IEscrow escrow_) {
        if (address(escrow_).code.length == 0) revert BadEscrow(address(escrow_));
        escrow = escrow_;
    }

    // ------------------------------------------------------------------ proofs

    /// @inheritdoc IEvidenceVerifier
    function proveEquivocation(
        JobOfChannel calldata subject,
        SignedReceipt calldata one,
        SignedReceipt calldata other
    ) external view returns (Fault, address, address) {
        (, bytes32 job) = _identify(subject);
        bytes32 first = _requireReceipt(subject, job, one);
        bytes32 second = _requireReceipt(subject, job, other);
        if (one.receipt.canvas != other.receipt.canvas || first == second) revert NotContradictory();
        return (Fault.Equivocation, subject.channel.operator, subject.channel.payer);
    }

    /// @inheritdoc IEvidenceVerifier
    function proveBrokenChain(
        JobOfChannel calldata subject,
        SignedReceipt calldata earlier,
        SignedReceipt calldata later
    ) external view returns (Fault, address, address) {
        (, bytes32 job) = _identify(subject);
        bytes32 digest = _requireReceipt(subject, job, earlier);
        _requireReceipt(subject, job, later);
        if (later.receipt.canvas != uint256(earlier.receipt.canvas) + 1) revert NotContradictory();
        if (!ReceiptRules.chainBroken(earlier.receipt, later.receipt, digest)) revert NotBroken();
        return (Fault.BrokenChain, subject.channel.operator, subject.channel.payer);
    }

    /// @inheritdoc IEvidenceVerifier
    function proveBrokenBeginning(JobOfChannel calldata subject, SignedReceipt calldata first)
        external
        view
        returns (Fault, address, address)
    {
        (, bytes32 job) = _identify(subject);
        _requireReceipt(subject, job, first);
        if (first.receipt.canvas != 0 || !ReceiptRules.beginningBroken(first.receipt)) revert NotBroken();
        return (Fault.BrokenChain, subject.channel.operator, subject.channel.payer);
    }

    /// @inheritdoc IEvidenceVerifier
    function proveExcess(JobOfChannel calldata subject, SignedReceipt calldata over)
        external
        view
        returns (Fault, address, address)
    {
        (, bytes32 job) = _identify(subject);
        _requireReceipt(subject, job, over);
        if (!ReceiptRules.exceedsJob(subject.job, over.receipt)) revert NotBroken();
        return (Fault.Overcharge, subject.channel.operator, subject.channel.payer);
    }

    /// @inheritdoc IEvidenceVerifier
    function proveOvercharge(
        JobOfChannel calldata subject,
        SignedReceipt calldata over,
        OfferOpening calldata offer
    ) external view returns (Fault, address, address) {
        (, bytes32 job) = _identify(subject);
        _requireReceipt(subject, job, over);
        bytes32 digest = _digest(ReceiptRules.hashOffer(offer, subject.job.entry));
        if (digest != subject.job.offer) revert ReceiptRules.NotTheOffer();
        if (!ReceiptRules.exceedsPrice(offer.entry, over.receipt)) revert NotBroken();
        return (Fault.Overcharge, subject.channel.operator, subject.channel.payer);
    }

    /// @inheritdoc IEvidenceVerifier
    function proveAcceptances(
        JobOfChannel calldata subject,
        SignedAcceptance calldata one,
        SignedAcceptance calldata other
    ) external view returns (Fault, address, address) {
        (, bytes32 job) = _identify(subject);
        _requireAcceptance(subject, job, one);
        _requireAcceptance(subject, job, other);
        if (one.promptTokens == other.promptTokens) revert NotContradictory();
        return (Fault.Acceptances, subject.channel.operator, subject.channel.payer);
    }

    /// @inheritdoc IEvidenceVerifier
    function proveTrace(
        JobOfChannel calldata subject,
        SignedReceipt calldata signed,
        TraceProof calldata proof
    ) external view returns (Fault, address, address) {
        (, bytes32 job) = _identify(subject);
        _requireReceipt(subject, job, signed);
        if (!TraceRules.broken(subject.job, signed.receipt, proof)) revert NotBroken();
        return (Fault.Trace, subject.channel.operator, subject.channel.payer);
    }

    // ------------------------------------------------------------------ questions

    /// @inheritdoc IEvidenceVerifier
    function ask(
        address challenger,
        JobOfChannel calldata subject,
        SignedReceipt calldata signed,
        uint32 leaf,
        uint8 fields
    ) external view returns (Challenge memory asked, uint64 deadline) {
        if (challenger != subject.channel.payer && challenger != subject.channel.authorizer) {
            revert NotPayerOrAuthorizer(challenger);
        }
        bytes32 job;
        (asked.channel, job) = _identify(subject);
        asked.receipt = _requireReceipt(subject, job, signed);
        uint32 steps = signed.receipt.steps;
        bool known = steps > 0 && leaf <= steps && fields > 0 && fields >> TraceLeaves.fieldCount(leaf) == 0;
        if (!known) revert BadLeaf(leaf, fields);
        asked.payer = subject.channel.payer;
        asked.operator = subject.channel.operator;
        asked.challenger = challenger;
        asked.traceRoot = signed.receipt.traceRoot;
        asked.steps = steps;
        asked.leaf = leaf;
        asked.fields = fields;
        asked.token = subject.channel.token;
        asked.amount = signed.receipt.amount;
        deadline = subject.job.deadline;
    }

    // ------------------------------------------------------------------ checks

    /// @dev Of an object of the escrow.
    function _digest(bytes32 structHash) private view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", escrow.DOMAIN_SEPARATOR(), structHash));
    }

    function _identify(JobOfChannel calldata subject) private view returns (bytes32 channel, bytes32 job) {
        channel = _digest(PieceworkTypes.hashChannel(subject.channel));
        if (subject.job.channel != channel) revert NotTheJob(subject.job.channel, channel);
        job = _digest(PieceworkTypes.hashJob(subject.job));
    }

    function _requireReceipt(JobOfChannel calldata subject, bytes32 job, SignedReceipt calldata signed)
        private
        view
        returns (bytes32 digest)
    {
        if (signed.receipt.job != job) revert NotTheJob(signed.receipt.job, job);
        digest = _digest(PieceworkTypes.hashReceipt(signed.receipt));
        _requireOperator(subject.channel.operator, digest, signed.signature);
    }

    function _requireAcceptance(JobOfChannel calldata subject, bytes32 job, SignedAcceptance calldata signed)
        private
        view
    {
        bytes32 digest = _digest(PieceworkTypes.hashAcceptance(job, signed.promptTokens, signed.acceptedAt));
        _requireOperator(subject.channel.operator, digest, signed.signature);
    }

    function _requireOperator(address operator, bytes32 digest, bytes calldata signature) private pure {
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (failure != ECDSA.RecoverError.NoError || signer != operator) revert NotSignedBy(operator);
    }
}
