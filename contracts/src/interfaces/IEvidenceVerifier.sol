// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

import {Channel, Job, Receipt} from "../libraries/PieceworkTypes.sol";
import {OfferOpening} from "../libraries/ReceiptRules.sol";
import {TraceProof} from "../libraries/TraceRules.sol";
import {IEscrow} from "./IEscrow.sol";

/// @notice The job that a proof is about, and its channel.
struct JobOfChannel {
    Channel channel;
    Job job;
}

/// @notice A receipt with its operator's signature, 65 bytes.
struct SignedReceipt {
    Receipt receipt;
    bytes signature;
}

/// @notice An acceptance with its operator's signature, 65 bytes.
struct SignedAcceptance {
    uint32 promptTokens;
    uint64 acceptedAt;
    bytes signature;
}

/// @notice What a challenge asks for. Its hash is the id: the same question is asked once.
/// @param channel the channel's id
/// @param payer who gets a reward
/// @param operator who has to answer
/// @param challenger who paid the bond: the channel's payer or authorizer
/// @param receipt digest of the receipt
/// @param traceRoot its trace root
/// @param steps its steps
/// @param leaf 0 for the canvas leaf, k + 1 for that of step k
/// @param fields bit i asks for field i of the leaf
/// @param token the channel's token
/// @param amount what the receipt charged, base units of that token
struct Challenge {
    bytes32 channel;
    address payer;
    address operator;
    address challenger;
    bytes32 receipt;
    bytes32 traceRoot;
    uint32 steps;
    uint32 leaf;
    uint8 fields;
    address token;
    uint128 amount;
}

/// @notice What was proved.
enum Fault {
    Equivocation,
    BrokenChain,
    Overcharge,
    Acceptances,
    Trace
}

/// @title EvidenceVerifier: what signed evidence proves
/// @notice It holds nothing and changes nothing. A function that returns is a proof: it reverts when the evidence shows
/// no fault. Everything is bound to one escrow, whose domain the objects are signed under. docs/disputes.md has the
/// rules.
interface IEvidenceVerifier {
    error BadEscrow(address escrow);
    error NotTheJob(bytes32 given, bytes32 expected);
    error NotSignedBy(address operator);
    error NotContradictory();
    error NotBroken();
    error NotPayerOrAuthorizer(address challenger);
    error BadLeaf(uint32 leaf, uint8 fields);

    // ------------------------------------------------------------------ proofs

    /// @notice Two receipts for one canvas.
    /// @param subject the job
    /// @param one the one
    /// @param other another
    /// @return fault what was proved
    /// @return operator who did it
    /// @return payer who gets a reward
    function proveEquivocation(
        JobOfChannel calldata subject,
        SignedReceipt calldata one,
        SignedReceipt calldata other
    ) external view returns (Fault fault, address operator, address payer);

    /// @notice Receipts of two canvases that follow each other and do not form a chain.
    /// @param subject the job
    /// @param earlier the receipt of canvas k
    /// @param later the receipt of canvas k + 1
    /// @return fault what was proved
    /// @return operator who did it
    /// @return payer who gets a reward
    function proveBrokenChain(
        JobOfChannel calldata subject,
        SignedReceipt calldata earlier,
        SignedReceipt calldata later
    ) external view returns (Fault fault, address operator, address payer);

    /// @notice A receipt of canvas 0 that does not begin a chain.
    /// @param subject the job
    /// @param first the receipt
    /// @return fault what was proved
    /// @return operator who did it
    /// @return payer who gets a reward
    function proveBrokenBeginning(JobOfChannel calldata subject, SignedReceipt calldata first)
        external
        view
        returns (Fault fault, address operator, address payer);

    /// @notice More steps than the job allows, or more money than its ceiling.
    /// @param subject the job
    /// @param over the receipt
    /// @return fault what was proved
    /// @return operator who did it
    /// @return payer who gets a reward
    function proveExcess(JobOfChannel calldata subject, SignedReceipt calldata over)
        external
        view
        returns (Fault fault, address operator, address payer);

    /// @notice More money than the offer's price.
    /// @param subject the job
    /// @param over the receipt
    /// @param offer the job's offer
    /// @return fault what was proved
    /// @return operator who did it
    /// @return payer who gets a reward
    function proveOvercharge(
        JobOfChannel calldata subject,
        SignedReceipt calldata over,
        OfferOpening calldata offer
    ) external view returns (Fault fault, address operator, address payer);

    /// @notice Two acceptances of one job with different prompt tokens.
    /// @param subject the job
    /// @param one the one
    /// @param other another
    /// @return fault what was proved
    /// @return operator who did it
    /// @return payer who gets a reward
    function proveAcceptances(
        JobOfChannel calldata subject,
        SignedAcceptance calldata one,
        SignedAcceptance calldata other
    ) external view returns (Fault fault, address operator, address payer);

    /// @notice A trace that breaks an exact rule.
    /// @param subject the job
    /// @param signed the receipt with the trace root
    /// @param proof what shows it
    /// @return fault what was proved
    /// @return operator who did it
    /// @return payer who gets a reward
    function proveTrace(
        JobOfChannel calldata subject,
        SignedReceipt calldata signed,
        TraceProof calldata proof
    ) external view returns (Fault fault, address operator, address payer);

    // ------------------------------------------------------------------ questions

    /// @notice What a challenge asks for. Reverts unless `challenger` is payer or authorizer of the channel.
    /// @param challenger who asks
    /// @param subject the job
    /// @param signed the receipt with the trace root
    /// @param leaf 0 for the canvas leaf, k + 1 for that of step k
    /// @param fields bit i asks for field i
    /// @return asked the question
    /// @return deadline of the job
    function ask(
        address challenger,
        JobOfChannel calldata subject,
        SignedReceipt calldata signed,
        uint32 leaf,
        uint8 fields
    ) external view returns (Challenge memory asked, uint64 deadline);

    /// @notice The escrow whose objects are judged.
    /// @return escrow its address
    function escrow() external view returns (IEscrow escrow);
}
