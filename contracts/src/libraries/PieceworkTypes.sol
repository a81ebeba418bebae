// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice The terms of one payment channel. Its EIP-712 digest is the channel id, so that id commits to
/// every member, to the chain and to the escrow.
/// @param payer whose pooled balance funds the channel and gets the rest back; may be a smart account
/// @param authorizer the key that signs vouchers: always a plain secp256k1 key, never asked through ERC-1271
/// @param receiver where settled money goes: the worker's cold address
/// @param operator the worker's hot key: may agree to close early, can never redirect money
/// @param token the ERC-20 that is paid
/// @param withdrawalDelay seconds between the payer's request and the withdrawal: the worker's time to settle
/// @param salt makes channels with the same terms distinct
struct Channel {
    address payer;
    address authorizer;
    address receiver;
    address operator;
    address token;
    uint64 withdrawalDelay;
    bytes32 salt;
}

/// @notice A voucher, the channel that it draws on and the authorizer's signature. What a worker submits.
/// @param cumulative everything the channel has earned so far, in base units of the token
/// @param count receipts paid so far
/// @param receiptsRoot root of the Merkle tree over those receipts
/// @param signature the authorizer's signature over Voucher(channel, cumulative, count, receiptsRoot)
struct Claim {
    Channel channel;
    uint128 cumulative;
    uint64 count;
    bytes32 receiptsRoot;
    bytes signature;
}

/// @notice What changes the result of a job. Temperatures, bounds and thresholds are in millionths.
/// `service` is 0 for a replayable job; a best-effort one (1) has zero everywhere but in maxTokens.
struct Parameters {
    uint64 seed;
    uint32 maxTokens;
    uint32 maxSteps;
    uint32 temperatureStart;
    uint32 temperatureEnd;
    uint32 entropyBound;
    uint32 confidenceThreshold;
    uint32 stabilitySteps;
    uint8 service;
}

/// @notice A job as its authorizer signs it; the digest is the job id.
struct Job {
    bytes32 channel;
    bytes32 salt;
    bytes32 offer;
    bytes32 model;
    bytes32 prompt;
    Parameters parameters;
    uint128 maxAmount;
    uint64 deadline;
    bytes32 replyKey;
}

/// @notice One canvas as its operator signs it; the digest is the leaf of the channel's Merkle tree.
struct Receipt {
    bytes32 job;
    uint32 canvas;
    bytes32 outputDigest;
    bytes32 traceRoot;
    uint32 steps;
    uint32 units;
    uint128 amount;
    uint8 finish;
    bytes32 previous;
}

/// @title EIP-712 type hashes and struct hashes
/// @dev Everything is signed under the escrow's domain ("Piecework", "1"). Held equal to the Python encoder by
/// the golden vectors in tests/vectors. The argument lists follow the type strings, member for member.
library PieceworkTypes {
    string internal constant CHANNEL_TYPE =
        "Channel(address payer,address authorizer,address receiver,address operator,address token,uint64 withdrawalDelay,bytes32 salt)";
    string internal constant PARAMETERS_TYPE =
        "Parameters(uint64 seed,uint32 maxTokens,uint32 maxSteps,uint32 temperatureStart,uint32 temperatureEnd,uint32 entropyBound,uint32 confidenceThreshold,uint32 stabilitySteps,uint8 service)";

    bytes32 internal constant CHANNEL_TYPEHASH = keccak256(bytes(CHANNEL_TYPE));
    bytes32 internal constant FUND_CHANNEL_TYPEHASH = keccak256(
        bytes(string.concat("FundChannel(Channel channel,uint128 deposit,uint64 deadline)", CHANNEL_TYPE))
    );
    bytes32 internal constant VOUCHER_TYPEHASH =
        keccak256("Voucher(bytes32 channel,uint128 cumulative,uint64 count,bytes32 receiptsRoot)");
    bytes32 internal constant CLOSE_CHANNEL_TYPEHASH =
        keccak256("CloseChannel(bytes32 channel,uint128 cumulative,uint64 count,bytes32 receiptsRoot)");
    bytes32 internal constant REQUEST_WITHDRAWAL_TYPEHASH =
        keccak256("RequestWithdrawal(bytes32 channel,uint64 deadline)");
    bytes32 internal constant PARAMETERS_TYPEHASH = keccak256(bytes(PARAMETERS_TYPE));
    bytes32 internal constant JOB_TYPEHASH = keccak256(
        bytes(
            string.concat(
                "Job(bytes32 channel,bytes32 salt,bytes32 offer,bytes32 model,bytes32 prompt,Parameters parameters,uint128 maxAmount,uint64 deadline,bytes32 replyKey)",
                PARAMETERS_TYPE
            )
        )
    );
    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(bytes32 job,uint32 canvas,bytes32 outputDigest,bytes32 traceRoot,uint32 steps,uint32 units,uint128 amount,uint8 finish,bytes32 previous)"
    );

    function hashChannel(Channel calldata c) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                CHANNEL_TYPEHASH,
                c.payer,
                c.authorizer,
                c.receiver,
                c.operator,
                c.token,
                c.withdrawalDelay,
                c.salt
            )
        );
    }

    function hashFundChannel(Channel calldata channel, uint128 deposit, uint64 deadline)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(FUND_CHANNEL_TYPEHASH, hashChannel(channel), deposit, deadline));
    }

    function hashVoucher(bytes32 channelId, uint128 cumulative, uint64 count, bytes32 receiptsRoot)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, cumulative, count, receiptsRoot));
    }

    function hashCloseChannel(bytes32 channelId, uint128 cumulative, uint64 count, bytes32 receiptsRoot)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(CLOSE_CHANNEL_TYPEHASH, channelId, cumulative, count, receiptsRoot));
    }

    function hashRequestWithdrawal(bytes32 channelId, uint64 deadline) internal pure returns (bytes32) {
        return keccak256(abi.encode(REQUEST_WITHDRAWAL_TYPEHASH, channelId, deadline));
    }

    function hashParameters(Parameters memory p) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                PARAMETERS_TYPEHASH,
                p.seed,
                p.maxTokens,
                p.maxSteps,
                p.temperatureStart,
                p.temperatureEnd,
                p.entropyBound,
                p.confidenceThreshold,
                p.stabilitySteps,
                p.service
            )
        );
    }

    function hashJob(Job memory j) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                JOB_TYPEHASH,
                j.channel,
                j.salt,
                j.offer,
                j.model,
                j.prompt,
                hashParameters(j.parameters),
                j.maxAmount,
                j.deadline,
                j.replyKey
            )
        );
    }

    function hashReceipt(Receipt memory r) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                RECEIPT_TYPEHASH,
                r.job,
                r.canvas,
                r.outputDigest,
                r.traceRoot,
                r.steps,
                r.units,
                r.amount,
                r.finish,
                r.previous
            )
        );
    }
}
