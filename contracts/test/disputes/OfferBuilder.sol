// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Endpoint, ModelOffer, Offer, OfferTypes} from "../../src/libraries/OfferTypes.sol";
import {OfferOpening} from "../../src/libraries/ReceiptRules.sol";

/// @notice An offer of two entries, and how one of them is opened.
library OfferBuilder {
    /// @param low price of entry 0, base units per million tokens and per thousand steps
    /// @param high the same of entry 1
    function offer(address operator, address receiver, uint128 low, uint128 high)
        internal
        pure
        returns (Offer memory o)
    {
        o.operator = operator;
        o.receiver = receiver;
        o.sequence = 7;
        o.endpoints = new Endpoint[](1);
        o.endpoints[0] = Endpoint(0, "w:1");
        o.tokens = new address[](1);
        o.models = new ModelOffer[](2);
        o.models[0] = _model(low);
        o.models[1] = _model(high);
        o.details = "{}";
    }

    /// @dev The words by slicing what abi.encode gives: independent of the library under test.
    function opening(Offer memory o, uint256 entry) internal pure returns (OfferOpening memory opened) {
        opened.words[0] = OfferTypes.OFFER_TYPEHASH;
        opened.words[1] = bytes32(uint256(uint160(o.operator)));
        opened.words[2] = bytes32(uint256(uint160(o.receiver)));
        opened.words[3] = bytes32(uint256(o.sequence));
        opened.words[6] = keccak256(abi.encodePacked(OfferTypes.hashEndpoint(o.endpoints[0])));
        opened.words[9] = keccak256(abi.encodePacked(o.tokens));
        opened.words[24] = keccak256(bytes(o.details));
        opened.models = new bytes32[](2);
        for (uint256 i = 0; i < 2; ++i) {
            opened.models[i] = OfferTypes.hashModel(o.models[i]);
        }
        ModelOffer memory m = o.models[entry];
        bytes32 price = bytes32(uint256(m.pricePerMillionPromptTokens));
        opened.entry = [
            OfferTypes.MODEL_OFFER_TYPEHASH,
            keccak256("m"),
            m.digest,
            keccak256("p"),
            bytes32(uint256(1)),
            bytes32(0),
            price,
            price,
            price,
            bytes32(uint256(9)),
            bytes32(uint256(9)),
            bytes32(uint256(9)),
            bytes32(uint256(9)),
            bytes32(uint256(9)),
            bytes32(uint256(9))
        ];
    }

    function _model(uint128 price) private pure returns (ModelOffer memory) {
        return ModelOffer("m", keccak256("model"), "p", 1, 0, price, price, price, 9, 9, 9, 9, 9, 9);
    }
}
