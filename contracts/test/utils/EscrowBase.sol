// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestToken} from "../../src/TestToken.sol";
import {ChannelState, IEscrow, SkipReason} from "../../src/interfaces/IEscrow.sol";
import {Channel, Claim, PieceworkTypes, Terms, WithdrawPooled} from "../../src/libraries/PieceworkTypes.sol";
import {Deploy} from "./Deploy.sol";
import {Hashes} from "./Hashes.sol";

/// @notice One escrow, one token, one payer with a pooled balance, one worker; and everything that signs.
abstract contract EscrowBase is Deploy {
    uint256 internal constant PAYER_KEY = 0xA11CE;
    uint256 internal constant AUTHORIZER_KEY = 0xB0B;
    uint256 internal constant OPERATOR_KEY = 0x09E8A708;
    uint256 internal constant STRANGER_KEY = 0x57A46E8;
    uint64 internal constant DELAY = 1 hours;
    uint64 internal constant SOON = type(uint64).max;
    uint256 internal constant POOLED = 1_000_000_000;
    uint128 internal constant DEPOSIT = 10_000_000;
    uint128 internal constant EVERYTHING = type(uint96).max;
    bytes32 internal constant ROOT = keccak256("receipts root");

    IEscrow internal escrow;
    TestToken internal token;
    Hashes internal hashes;
    address internal payer = vm.addr(PAYER_KEY);
    address internal authorizer = vm.addr(AUTHORIZER_KEY);
    address internal operator = vm.addr(OPERATOR_KEY);
    address internal stranger = vm.addr(STRANGER_KEY);
    address internal receiver = address(0x4EC31);

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        escrow = newEscrow();
        token = new TestToken();
        hashes = new Hashes();
        pool(payer, POOLED);
    }

    /// @dev Mints to `owner` and deposits for it.
    function pool(address owner, uint256 amount) internal {
        token.mint(address(this), amount);
        token.approve(address(escrow), amount);
        escrow.deposit(address(token), amount, owner);
    }

    function channelOf(uint256 salt) internal view returns (Channel memory) {
        return Channel({
            payer: payer,
            authorizer: authorizer,
            receiver: receiver,
            operator: operator,
            token: address(token),
            withdrawalDelay: DELAY,
            salt: bytes32(salt)
        });
    }

    function open(uint256 salt) internal returns (Channel memory channel, bytes32 id) {
        channel = channelOf(salt);
        id = openAs(channel);
    }

    function openAs(Channel memory channel) internal returns (bytes32 id) {
        id = escrow.channelId(channel);
        vm.prank(channel.payer);
        escrow.fund(channel, DEPOSIT, 0, SOON, "");
    }

    // ------------------------------------------------------------------ signatures

    function digestOf(bytes32 structHash) internal view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", escrow.DOMAIN_SEPARATOR(), structHash));
    }

    function signHash(uint256 key, bytes32 structHash) internal view returns (bytes memory) {
        return signDigest(key, digestOf(structHash));
    }

    function signDigest(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function fundSignature(uint256 key, Channel memory channel, uint128 total, uint128 fee, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        return signHash(key, hashes.fundChannel(channel, total, fee, deadline));
    }

    /// @dev For the channel's next request.
    function requestSignature(uint256 key, Channel memory channel, uint128 amount, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        bytes32 id = escrow.channelId(channel);
        uint64 nonce = escrow.getChannel(id).requests;
        return signHash(key, PieceworkTypes.hashRequestWithdrawal(id, amount, nonce, deadline));
    }

    function cancelSignature(uint256 key, Channel memory channel, uint64 nonce, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        bytes32 id = escrow.channelId(channel);
        return signHash(key, PieceworkTypes.hashCancelWithdrawal(id, nonce, deadline));
    }

    function orderSignature(uint256 key, WithdrawPooled memory order) internal view returns (bytes memory) {
        return signHash(key, hashes.withdrawPooled(order));
    }

    function closeSignature(uint256 key, Claim memory claim, uint128 fee)
        internal
        view
        returns (bytes memory)
    {
        bytes32 id = escrow.channelId(claim.channel);
        bytes32 structHash =
            PieceworkTypes.hashCloseChannel(id, claim.cumulative, claim.count, claim.receiptsRoot, fee);
        return signHash(key, structHash);
    }

    /// @dev EIP-3009 over the test token, to the escrow.
    function authorizationDigest(address from, uint256 value, bytes32 nonce) internal view returns (bytes32) {
        bytes32 structHash = keccak256(
            abi.encode(
                token.RECEIVE_WITH_AUTHORIZATION_TYPEHASH(),
                from,
                address(escrow),
                value,
                0,
                type(uint256).max,
                nonce
            )
        );
        return keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash));
    }

    /// @dev What opens or tops `channel` up, given what it holds now.
    function openingSignature(uint256 key, Channel memory channel, uint128 amount, uint128 fee)
        internal
        view
        returns (bytes memory)
    {
        bytes32 id = escrow.channelId(channel);
        bytes32 nonce = escrow.openingNonce(id, escrow.getChannel(id).funded, fee);
        return signDigest(key, authorizationDigest(channel.payer, uint256(amount) + fee, nonce));
    }

    // ------------------------------------------------------------------ claims

    function claimOf(Channel memory channel, uint128 cumulative, uint64 count)
        internal
        view
        returns (Claim memory)
    {
        return claimBy(AUTHORIZER_KEY, channel, cumulative, count);
    }

    function claimBy(uint256 key, Channel memory channel, uint128 cumulative, uint64 count)
        internal
        view
        returns (Claim memory)
    {
        bytes32 id = escrow.channelId(channel);
        bytes memory signature = signHash(key, PieceworkTypes.hashVoucher(id, cumulative, count, ROOT));
        return Claim(channel, cumulative, count, ROOT, signature);
    }

    function unsigned(Channel memory channel, uint128 cumulative) internal pure returns (Claim memory) {
        return Claim(channel, cumulative, 0, bytes32(0), "");
    }

    function settleOne(Claim memory claim) internal {
        escrow.settle(one(claim));
    }

    function one(Claim memory claim) internal pure returns (Claim[] memory claims) {
        claims = new Claim[](1);
        claims[0] = claim;
    }

    function termsOf(Channel memory channel) internal pure returns (Terms memory) {
        return Terms(channel.receiver, channel.operator, channel.token, channel.withdrawalDelay);
    }

    /// @dev Rows as a worker writes them, by byte concatenation: independent of how the contract reads them.
    function pack(Claim[] memory claims) internal pure returns (bytes memory rows) {
        for (uint256 i = 0; i < claims.length; ++i) {
            rows = bytes.concat(rows, packOne(claims[i]));
        }
    }

    function packOne(Claim memory c) internal pure returns (bytes memory) {
        bytes32 r;
        bytes32 vs;
        bytes memory signature = c.signature;
        if (signature.length == 65) {
            assembly ("memory-safe") {
                r := mload(add(signature, 0x20))
                vs := mload(add(signature, 0x40))
            }
            if (uint8(signature[64]) == 28) vs |= bytes32(uint256(1) << 255);
        }
        return abi.encodePacked(
            c.channel.payer,
            c.channel.authorizer,
            c.channel.salt,
            c.cumulative,
            c.count,
            c.receiptsRoot,
            r,
            vs
        );
    }

    // ------------------------------------------------------------------ state

    function pooled(address owner) internal view returns (uint256) {
        return escrow.balanceOf(address(token), owner);
    }

    function waiting(address who) internal view returns (uint256) {
        return escrow.payoutOf(address(token), who);
    }

    function expectState(bytes32 id, uint256 funded, uint256 settled, bool closed) internal view {
        ChannelState memory state = escrow.getChannel(id);
        vm.assertEq(state.funded, funded, "funded");
        vm.assertEq(state.settled, settled, "settled");
        vm.assertTrue(state.closed == closed, "closed");
    }

    function expectWithdrawals(
        bytes32 id,
        uint256 withdrawn,
        uint256 requested,
        uint256 requestedAt,
        uint256 requests
    ) internal view {
        ChannelState memory state = escrow.getChannel(id);
        vm.assertEq(state.withdrawn, withdrawn, "withdrawn");
        vm.assertEq(state.requested, requested, "requested");
        vm.assertEq(state.requestedAt, requestedAt, "requestedAt");
        vm.assertEq(state.requests, requests, "requests");
    }

    /// @dev The claim pays nothing for this reason: in the preview, in settle and in a packed row.
    function expectSkip(Claim memory claim, SkipReason reason) internal {
        (uint128[] memory amounts, SkipReason[] memory reasons) = escrow.previewSettle(one(claim));
        vm.assertEq(amounts[0], 0, "previewed amount");
        vm.assertEq(uint256(reasons[0]), uint256(reason), "previewed reason");
        bytes32 id = escrow.channelId(claim.channel);
        vm.expectEmit(address(escrow));
        emit IEscrow.ClaimSkipped(id, reason);
        settleOne(claim);
        vm.expectEmit(address(escrow));
        emit IEscrow.ClaimSkipped(id, reason);
        escrow.settlePacked(termsOf(claim.channel), packOne(claim));
    }
}
