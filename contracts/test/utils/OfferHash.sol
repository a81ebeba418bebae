// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice The offer and its acceptance are signed under the escrow's domain too, but no contract reads them; their
/// hashes live here, so that the Python encoder is held to Solidity for nested arrays and strings as well.
struct ModelOffer {
    string name;
    bytes32 digest;
    string profile;
    uint128 pricePerMillionPromptTokens;
    uint128 pricePerMillionOutputTokens;
    uint128 pricePerThousandSteps;
    uint32 maxContext;
    uint32 maxOutput;
    uint32 canvasSize;
    uint32 maxSteps;
    uint32 tokensPerSecond;
    uint32 firstCanvasMs;
    uint8 service;
}

struct Offer {
    address operator;
    address receiver;
    uint64 sequence;
    uint64 issuedAt;
    uint64 expiresAt;
    string endpoint;
    bytes32 tlsCertificate;
    bytes32 sealingKey;
    address[] tokens;
    ModelOffer[] models;
    uint32 slots;
    uint32 slotsFree;
    uint32 queueFree;
    uint32 creditWindow;
    uint64 minWithdrawalDelay;
    uint128 minDeposit;
    string details;
}

library OfferHash {
    string internal constant MODEL_OFFER_TYPE =
        "ModelOffer(string name,bytes32 digest,string profile,uint128 pricePerMillionPromptTokens,uint128 pricePerMillionOutputTokens,uint128 pricePerThousandSteps,uint32 maxContext,uint32 maxOutput,uint32 canvasSize,uint32 maxSteps,uint32 tokensPerSecond,uint32 firstCanvasMs,uint8 service)";
    string internal constant OFFER_TYPE =
        "Offer(address operator,address receiver,uint64 sequence,uint64 issuedAt,uint64 expiresAt,string endpoint,bytes32 tlsCertificate,bytes32 sealingKey,address[] tokens,ModelOffer[] models,uint32 slots,uint32 slotsFree,uint32 queueFree,uint32 creditWindow,uint64 minWithdrawalDelay,uint128 minDeposit,string details)";

    function hashAcceptance(bytes32 job, uint32 promptTokens) internal pure returns (bytes32) {
        return
            keccak256(abi.encode(keccak256("Acceptance(bytes32 job,uint32 promptTokens)"), job, promptTokens));
    }

    /// @dev Encoded in two halves: all members at once are too many for the stack.
    function hashModel(ModelOffer memory m) internal pure returns (bytes32) {
        bytes memory first = abi.encode(
            keccak256(bytes(MODEL_OFFER_TYPE)),
            keccak256(bytes(m.name)),
            m.digest,
            keccak256(bytes(m.profile)),
            m.pricePerMillionPromptTokens,
            m.pricePerMillionOutputTokens,
            m.pricePerThousandSteps
        );
        bytes memory second = abi.encode(
            m.maxContext, m.maxOutput, m.canvasSize, m.maxSteps, m.tokensPerSecond, m.firstCanvasMs, m.service
        );
        return keccak256(bytes.concat(first, second));
    }

    function hashOffer(Offer memory o) internal pure returns (bytes32) {
        bytes32[] memory models = new bytes32[](o.models.length);
        for (uint256 i = 0; i < models.length; ++i) {
            models[i] = hashModel(o.models[i]);
        }
        bytes memory first = abi.encode(
            keccak256(bytes(string.concat(OFFER_TYPE, MODEL_OFFER_TYPE))),
            o.operator,
            o.receiver,
            o.sequence,
            o.issuedAt,
            o.expiresAt,
            keccak256(bytes(o.endpoint)),
            o.tlsCertificate,
            o.sealingKey
        );
        bytes memory second = abi.encode(
            keccak256(abi.encodePacked(o.tokens)),
            keccak256(abi.encodePacked(models)),
            o.slots,
            o.slotsFree,
            o.queueFree,
            o.creditWindow,
            o.minWithdrawalDelay,
            o.minDeposit,
            keccak256(bytes(o.details))
        );
        return keccak256(bytes.concat(first, second));
    }
}
