// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

import {OfferTypes} from "./OfferTypes.sol";
import {Job, Receipt} from "./PieceworkTypes.sol";

/// @notice One entry of an offer, opened to the words that EIP-712 hashes. So nobody has to send a whole offer.
/// @param words the type hash and the members of the offer; the one for the models is recomputed
/// @param models the struct hashes of all entries
/// @param entry the type hash and the members of the job's entry
struct OfferOpening {
    bytes32[25] words;
    bytes32[] models;
    bytes32[15] entry;
}

/// @title What receipts may say (clauses 4.1 and 4.4 of docs/protocol.md)
library ReceiptRules {
    uint256 internal constant MODELS_WORD = 10;
    uint256 internal constant PROMPT_PRICE_WORD = 6;
    uint256 internal constant OUTPUT_PRICE_WORD = 7;
    uint256 internal constant STEPS_PRICE_WORD = 8;
    uint8 internal constant MORE = 0;

    error NotTheOffer();

    /// @notice Whether two receipts of one job, the second right behind the first, do not form a chain.
    /// @param earlierDigest digest of the first
    function chainBroken(Receipt calldata earlier, Receipt calldata later, bytes32 earlierDigest)
        internal
        pure
        returns (bool)
    {
        return later.previous != earlierDigest || earlier.finish != MORE
            || later.totalPromptTokens != earlier.totalPromptTokens
            || later.totalUnits != uint256(earlier.totalUnits) + later.units
            || later.totalSteps != uint256(earlier.totalSteps) + later.steps
            || later.totalAmount != uint256(earlier.totalAmount) + later.amount;
    }

    /// @notice Whether the receipt of canvas 0 does not begin a chain.
    function beginningBroken(Receipt calldata first) internal pure returns (bool) {
        return first.previous != first.job || first.totalUnits != first.units
            || first.totalSteps != first.steps || first.totalAmount != first.amount;
    }

    /// @notice Whether a receipt has more steps than its job allows, or costs more than the job's ceiling.
    function exceedsJob(Job calldata job, Receipt calldata receipt) internal pure returns (bool) {
        return receipt.steps > job.parameters.maxSteps || receipt.totalAmount > job.maxAmount;
    }

    /// @notice Whether a receipt costs more than the offer's price of its totals.
    function exceedsPrice(bytes32[15] calldata entry, Receipt calldata receipt) internal pure returns (bool) {
        uint256 millionths = uint256(receipt.totalPromptTokens) * uint256(entry[PROMPT_PRICE_WORD])
            + uint256(receipt.totalUnits) * uint256(entry[OUTPUT_PRICE_WORD]) + uint256(receipt.totalSteps)
            * 1000 * uint256(entry[STEPS_PRICE_WORD]);
        return receipt.totalAmount > millionths / 1_000_000;
    }

    /// @notice Reverts unless the opened entry is the job's.
    /// @return structHash of the offer
    function hashOffer(OfferOpening calldata offer, uint32 entry) internal pure returns (bytes32 structHash) {
        bool known = offer.words[0] == OfferTypes.OFFER_TYPEHASH
            && offer.entry[0] == OfferTypes.MODEL_OFFER_TYPEHASH && entry < offer.models.length
            && offer.models[entry] == keccak256(abi.encode(offer.entry));
        if (!known) revert NotTheOffer();
        bytes32[25] memory words = offer.words;
        words[MODELS_WORD] = keccak256(abi.encodePacked(offer.models));
        return keccak256(abi.encode(words));
    }
}
