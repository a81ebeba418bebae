// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

/// @notice The terms of one payment channel. Its EIP-712 digest is the channel id. So the id commits to
/// every member, to the chain and to the escrow.
/// @param payer whose money funds the channel and gets the rest back; may be a smart account
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
/// @param channel the terms of the channel
/// @param cumulative everything the channel has earned so far, in base units of the token
/// @param count receipts paid so far
/// @param receiptsRoot root of the Merkle tree over those receipts
/// @param signature the authorizer's signature over Voucher(channel, cumulative, count, receiptsRoot), 65 bytes
struct Claim {
    Channel channel;
    uint128 cumulative;
    uint64 count;
    bytes32 receiptsRoot;
    bytes signature;
}

/// @notice The terms that all rows of a packed settlement share.
/// @param receiver the channels' receiver
/// @param operator the channels' operator
/// @param token the channels' token
/// @param withdrawalDelay the channels' withdrawal delay, seconds
struct Terms {
    address receiver;
    address operator;
    address token;
    uint64 withdrawalDelay;
}

/// @notice An order to send pooled money, as its owner signs it.
/// @param owner whose pooled balance it is; may be a smart account
/// @param token the ERC-20
/// @param amount base units that `to` gets
/// @param to who gets them
/// @param fee base units for whoever submits the order, taken beside `amount`
/// @param nonce orders of this owner that were carried out before
/// @param deadline block time after which the order is void
struct WithdrawPooled {
    address owner;
    address token;
    uint128 amount;
    address to;
    uint128 fee;
    uint64 nonce;
    uint64 deadline;
}

/// @notice What changes the result of a job. Temperatures, bounds and thresholds are in millionths.
/// `service` is 0 for a replayable job. A best-effort one (1) has zero everywhere but in maxTokens.
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

/// @notice A job as its authorizer signs it. The digest is the job id.
/// @param entry index of the offer's entry, which names the model, its profile and its prices
/// @param kind 0 text, 1 read, 2 audit, 3 open, 4 image
/// @param content keccak-256 of the salt and the canonical content bytes
struct Job {
    bytes32 channel;
    bytes32 salt;
    bytes32 offer;
    uint32 entry;
    bytes32 model;
    uint8 kind;
    bytes32 content;
    Parameters parameters;
    uint128 maxAmount;
    uint64 deadline;
    bytes32 replyKey;
}

/// @notice One canvas as its operator signs it. The digest is the leaf of the channel's Merkle tree.
/// @param finish 0 more, 1 end of text, 2 token limit, 3 cancelled
/// @param totalAmount price of the totals after this receipt; `amount` is what this receipt adds
struct Receipt {
    bytes32 job;
    uint32 canvas;
    bytes32 outputDigest;
    bytes32 traceRoot;
    uint32 steps;
    uint32 units;
    uint128 amount;
    uint8 finish;
    uint32 totalPromptTokens;
    uint32 totalUnits;
    uint32 totalSteps;
    uint128 totalAmount;
    bytes32 previous;
}

/// @title EIP-712 type hashes and struct hashes of channels, money, jobs and receipts
/// @dev All are signed under the escrow's domain ("Piecework", "2"). Golden vectors in tests/vectors hold them equal
/// to the Python encoder. The argument lists follow the type strings, member for member.
library PieceworkTypes {
    string internal constant CHANNEL_TYPE =
        "Channel(address payer,address authorizer,address receiver,address operator,address token,uint64 withdrawalDelay,bytes32 salt)";
    string internal constant FUND_CHANNEL_TYPE =
        "FundChannel(Channel channel,uint128 funded,uint128 fee,uint64 deadline)";
    string internal constant VOUCHER_TYPE =
        "Voucher(bytes32 channel,uint128 cumulative,uint64 count,bytes32 receiptsRoot)";
    string internal constant CLOSE_CHANNEL_TYPE =
        "CloseChannel(bytes32 channel,uint128 cumulative,uint64 count,bytes32 receiptsRoot,uint128 fee)";
    string internal constant REQUEST_WITHDRAWAL_TYPE =
        "RequestWithdrawal(bytes32 channel,uint128 amount,uint64 nonce,uint64 deadline)";
    string internal constant CANCEL_WITHDRAWAL_TYPE =
        "CancelWithdrawal(bytes32 channel,uint64 nonce,uint64 deadline)";
    string internal constant WITHDRAW_POOLED_TYPE =
        "WithdrawPooled(address owner,address token,uint128 amount,address to,uint128 fee,uint64 nonce,uint64 deadline)";
    string internal constant ACCOUNT_REQUEST_TYPE = "AccountRequest(bytes32 channel,uint64 deadline)";
    string internal constant PARAMETERS_TYPE =
        "Parameters(uint64 seed,uint32 maxTokens,uint32 maxSteps,uint32 temperatureStart,uint32 temperatureEnd,uint32 entropyBound,uint32 confidenceThreshold,uint32 stabilitySteps,uint8 service)";
    string internal constant JOB_TYPE =
        "Job(bytes32 channel,bytes32 salt,bytes32 offer,uint32 entry,bytes32 model,uint8 kind,bytes32 content,Parameters parameters,uint128 maxAmount,uint64 deadline,bytes32 replyKey)";
    string internal constant ACCEPTANCE_TYPE =
        "Acceptance(bytes32 job,uint32 promptTokens,uint64 acceptedAt)";
    string internal constant RECEIPT_TYPE =
        "Receipt(bytes32 job,uint32 canvas,bytes32 outputDigest,bytes32 traceRoot,uint32 steps,uint32 units,uint128 amount,uint8 finish,uint32 totalPromptTokens,uint32 totalUnits,uint32 totalSteps,uint128 totalAmount,bytes32 previous)";

    bytes32 internal constant CHANNEL_TYPEHASH = keccak256(bytes(CHANNEL_TYPE));
    bytes32 internal constant FUND_CHANNEL_TYPEHASH =
        keccak256(abi.encodePacked(FUND_CHANNEL_TYPE, CHANNEL_TYPE));
    bytes32 internal constant VOUCHER_TYPEHASH = keccak256(bytes(VOUCHER_TYPE));
    bytes32 internal constant CLOSE_CHANNEL_TYPEHASH = keccak256(bytes(CLOSE_CHANNEL_TYPE));
    bytes32 internal constant REQUEST_WITHDRAWAL_TYPEHASH = keccak256(bytes(REQUEST_WITHDRAWAL_TYPE));
    bytes32 internal constant CANCEL_WITHDRAWAL_TYPEHASH = keccak256(bytes(CANCEL_WITHDRAWAL_TYPE));
    bytes32 internal constant WITHDRAW_POOLED_TYPEHASH = keccak256(bytes(WITHDRAW_POOLED_TYPE));
    bytes32 internal constant ACCOUNT_REQUEST_TYPEHASH = keccak256(bytes(ACCOUNT_REQUEST_TYPE));
    bytes32 internal constant PARAMETERS_TYPEHASH = keccak256(bytes(PARAMETERS_TYPE));
    bytes32 internal constant JOB_TYPEHASH = keccak256(abi.encodePacked(JOB_TYPE, PARAMETERS_TYPE));
    bytes32 internal constant ACCEPTANCE_TYPEHASH = keccak256(bytes(ACCEPTANCE_TYPE));
    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(bytes(RECEIPT_TYPE));

    /// @dev Assembly, because every call hashes a channel and copying the seven words costs 300 gas less than encoding
    /// them. Unused bits that are not zero give an id that no channel can have: Solidity refuses such a channel when
    /// it is opened.
    function hashChannel(Channel calldata c) internal pure returns (bytes32 structHash) {
        bytes32 typeHash = CHANNEL_TYPEHASH;
        assembly ("memory-safe") {
            let buffer := mload(0x40)
            mstore(buffer, typeHash)
            calldatacopy(add(buffer, 0x20), c, 0xe0)
            structHash := keccak256(buffer, 0x100)
        }
    }

    function hashFundChannel(Channel calldata channel, uint128 funded, uint128 fee, uint64 deadline)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(FUND_CHANNEL_TYPEHASH, hashChannel(channel), funded, fee, deadline));
    }

    function hashVoucher(bytes32 channelId, uint128 cumulative, uint64 count, bytes32 receiptsRoot)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, cumulative, count, receiptsRoot));
    }

    function hashCloseChannel(
        bytes32 channelId,
        uint128 cumulative,
        uint64 count,
        bytes32 receiptsRoot,
        uint128 fee
    ) internal pure returns (bytes32) {
        return keccak256(abi.encode(CLOSE_CHANNEL_TYPEHASH, channelId, cumulative, count, receiptsRoot, fee));
    }

    function hashRequestWithdrawal(bytes32 channelId, uint128 amount, uint64 nonce, uint64 deadline)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(REQUEST_WITHDRAWAL_TYPEHASH, channelId, amount, nonce, deadline));
    }

    function hashCancelWithdrawal(bytes32 channelId, uint64 nonce, uint64 deadline)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(CANCEL_WITHDRAWAL_TYPEHASH, channelId, nonce, deadline));
    }

    function hashWithdrawPooled(WithdrawPooled calldata w) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(WITHDRAW_POOLED_TYPEHASH, w.owner, w.token, w.amount, w.to, w.fee, w.nonce, w.deadline)
        );
    }

    function hashAccountRequest(bytes32 channelId, uint64 deadline) internal pure returns (bytes32) {
        return keccak256(abi.encode(ACCOUNT_REQUEST_TYPEHASH, channelId, deadline));
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

    /// @dev In two halves, here and below: all members at once are too many for the stack without via_ir.
    function hashJob(Job memory j) internal pure returns (bytes32) {
        bytes memory first = abi.encode(JOB_TYPEHASH, j.channel, j.salt, j.offer, j.entry, j.model, j.kind);
        bytes memory second =
            abi.encode(j.content, hashParameters(j.parameters), j.maxAmount, j.deadline, j.replyKey);
        return keccak256(bytes.concat(first, second));
    }

    function hashAcceptance(bytes32 job, uint32 promptTokens, uint64 acceptedAt)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(ACCEPTANCE_TYPEHASH, job, promptTokens, acceptedAt));
    }

    function hashReceipt(Receipt memory r) internal pure returns (bytes32) {
        bytes memory first =
            abi.encode(RECEIPT_TYPEHASH, r.job, r.canvas, r.outputDigest, r.traceRoot, r.steps, r.units);
        bytes memory second = abi.encode(
            r.amount, r.finish, r.totalPromptTokens, r.totalUnits, r.totalSteps, r.totalAmount, r.previous
        );
        return keccak256(bytes.concat(first, second));
    }
}
