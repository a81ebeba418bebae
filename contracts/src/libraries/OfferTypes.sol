// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

/// @notice One model on one engine profile, as an offer lists it. Prices are base units of the token.
/// @param digest of the manifest of weights, tokenizer and config
/// @param profile what an auditor on the same hardware must match
/// @param kinds bit i is set when jobs of kind i are taken
/// @param service 0 replayable, 1 best effort
struct ModelOffer {
    string name;
    bytes32 digest;
    string profile;
    uint32 kinds;
    uint8 service;
    uint128 pricePerMillionPromptTokens;
    uint128 pricePerMillionOutputTokens;
    uint128 pricePerThousandSteps;
    uint32 maxContext;
    uint32 maxOutput;
    uint32 canvasSize;
    uint32 maxSteps;
    uint32 tokensPerSecond;
    uint32 firstCanvasMs;
}

/// @notice Where a worker listens. `route` is 0 for direct and 1 for relayed.
struct Endpoint {
    uint8 route;
    // `address` is a keyword of Solidity. The type string has it; members have no names in the hash.
    string address_;
}

/// @notice An offer as its operator signs it.
struct Offer {
    address operator;
    address receiver;
    uint64 sequence;
    uint64 issuedAt;
    uint64 expiresAt;
    Endpoint[] endpoints;
    bytes32 tlsCertificate;
    bytes32 sealingKey;
    address[] tokens;
    ModelOffer[] models;
    uint32 slots;
    uint32 slotsFree;
    uint32 queueFree;
    uint128 creditFirst;
    uint128 creditMined;
    uint128 creditMax;
    uint128 openFee;
    uint128 topUpFee;
    uint128 closeFee;
    uint128 minTopUp;
    uint64 minWithdrawalDelay;
    uint128 minDeposit;
    uint64 evidenceSeconds;
    string details;
}

/// @title EIP-712 hash of an offer, under the escrow's domain ("Piecework", "2")
/// @dev The escrow reads no offer. A dispute contract will, and the Python encoder is held to Solidity here.
library OfferTypes {
    string internal constant ENDPOINT_TYPE = "Endpoint(uint8 route,string address)";
    string internal constant MODEL_OFFER_TYPE =
        "ModelOffer(string name,bytes32 digest,string profile,uint32 kinds,uint8 service,uint128 pricePerMillionPromptTokens,uint128 pricePerMillionOutputTokens,uint128 pricePerThousandSteps,uint32 maxContext,uint32 maxOutput,uint32 canvasSize,uint32 maxSteps,uint32 tokensPerSecond,uint32 firstCanvasMs)";
    string internal constant OFFER_TYPE =
        "Offer(address operator,address receiver,uint64 sequence,uint64 issuedAt,uint64 expiresAt,Endpoint[] endpoints,bytes32 tlsCertificate,bytes32 sealingKey,address[] tokens,ModelOffer[] models,uint32 slots,uint32 slotsFree,uint32 queueFree,uint128 creditFirst,uint128 creditMined,uint128 creditMax,uint128 openFee,uint128 topUpFee,uint128 closeFee,uint128 minTopUp,uint64 minWithdrawalDelay,uint128 minDeposit,uint64 evidenceSeconds,string details)";

    bytes32 internal constant ENDPOINT_TYPEHASH = keccak256(bytes(ENDPOINT_TYPE));
    bytes32 internal constant MODEL_OFFER_TYPEHASH = keccak256(bytes(MODEL_OFFER_TYPE));
    bytes32 internal constant OFFER_TYPEHASH =
        keccak256(abi.encodePacked(OFFER_TYPE, ENDPOINT_TYPE, MODEL_OFFER_TYPE));

    function hashEndpoint(Endpoint memory e) internal pure returns (bytes32) {
        return keccak256(abi.encode(ENDPOINT_TYPEHASH, e.route, keccak256(bytes(e.address_))));
    }

    /// @dev In parts, here and below: all members at once are too many for the stack without via_ir.
    function hashModel(ModelOffer memory m) internal pure returns (bytes32) {
        bytes memory first = abi.encode(
            MODEL_OFFER_TYPEHASH,
            keccak256(bytes(m.name)),
            m.digest,
            keccak256(bytes(m.profile)),
            m.kinds,
            m.service,
            m.pricePerMillionPromptTokens,
            m.pricePerMillionOutputTokens
        );
        bytes memory second = abi.encode(
            m.pricePerThousandSteps,
            m.maxContext,
            m.maxOutput,
            m.canvasSize,
            m.maxSteps,
            m.tokensPerSecond,
            m.firstCanvasMs
        );
        return keccak256(bytes.concat(first, second));
    }

    function hashOffer(Offer memory o) internal pure returns (bytes32) {
        return keccak256(bytes.concat(_who(o), _what(o), _terms(o)));
    }

    function _who(Offer memory o) private pure returns (bytes memory) {
        bytes32[] memory endpoints = new bytes32[](o.endpoints.length);
        for (uint256 i = 0; i < endpoints.length; ++i) {
            endpoints[i] = hashEndpoint(o.endpoints[i]);
        }
        return abi.encode(
            OFFER_TYPEHASH,
            o.operator,
            o.receiver,
            o.sequence,
            o.issuedAt,
            o.expiresAt,
            keccak256(abi.encodePacked(endpoints))
        );
    }

    function _what(Offer memory o) private pure returns (bytes memory) {
        bytes32[] memory models = new bytes32[](o.models.length);
        for (uint256 i = 0; i < models.length; ++i) {
            models[i] = hashModel(o.models[i]);
        }
        return abi.encode(
            o.tlsCertificate,
            o.sealingKey,
            keccak256(abi.encodePacked(o.tokens)),
            keccak256(abi.encodePacked(models)),
            o.slots,
            o.slotsFree,
            o.queueFree
        );
    }

    function _terms(Offer memory o) private pure returns (bytes memory) {
        bytes memory credit = abi.encode(o.creditFirst, o.creditMined, o.creditMax);
        bytes memory fees = abi.encode(o.openFee, o.topUpFee, o.closeFee, o.minTopUp);
        bytes memory rest =
            abi.encode(o.minWithdrawalDelay, o.minDeposit, o.evidenceSeconds, keccak256(bytes(o.details)));
        return bytes.concat(credit, fees, rest);
    }
}
