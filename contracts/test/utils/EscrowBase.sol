// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Escrow} from "../../src/Escrow.sol";
import {TestToken} from "../../src/TestToken.sol";
import {ChannelState, IEscrow, SkipReason} from "../../src/interfaces/IEscrow.sol";
import {Channel, Claim, PieceworkTypes} from "../../src/libraries/PieceworkTypes.sol";
import {Hashes} from "./Hashes.sol";
import {Cheats} from "./Vm.sol";

/// @notice One escrow, one token, one payer with a pooled balance, one worker; and everything that signs.
abstract contract EscrowBase is Cheats {
    uint256 internal constant PAYER_KEY = 0xA11CE;
    uint256 internal constant AUTHORIZER_KEY = 0xB0B;
    uint256 internal constant OPERATOR_KEY = 0x09E8A708;
    uint256 internal constant STRANGER_KEY = 0x57A46E8;
    uint64 internal constant DELAY = 1 hours;
    uint64 internal constant SOON = type(uint64).max;
    uint256 internal constant POOLED = 1_000_000_000;
    uint128 internal constant DEPOSIT = 10_000_000;
    bytes32 internal constant ROOT = keccak256("receipts root");

    Escrow internal escrow;
    TestToken internal token;
    Hashes internal hashes;
    address internal payer = vm.addr(PAYER_KEY);
    address internal authorizer = vm.addr(AUTHORIZER_KEY);
    address internal operator = vm.addr(OPERATOR_KEY);
    address internal stranger = vm.addr(STRANGER_KEY);
    address internal receiver = address(0x4EC31);

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        escrow = new Escrow();
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
        id = escrow.channelId(channel);
        vm.prank(channel.payer);
        escrow.fund(channel, DEPOSIT, SOON, "");
    }

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

    function fundSignature(uint256 key, Channel memory channel, uint128 total, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        return signHash(key, hashes.fundChannel(channel, total, deadline));
    }

    function withdrawalSignature(uint256 key, Channel memory channel, uint64 deadline)
        internal
        view
        returns (bytes memory)
    {
        return signHash(key, PieceworkTypes.hashRequestWithdrawal(escrow.channelId(channel), deadline));
    }

    function closeSignature(uint256 key, Claim memory claim) internal view returns (bytes memory) {
        bytes32 id = escrow.channelId(claim.channel);
        return
            signHash(
                key, PieceworkTypes.hashCloseChannel(id, claim.cumulative, claim.count, claim.receiptsRoot)
            );
    }

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

    function pooled(address owner) internal view returns (uint256) {
        return escrow.balanceOf(address(token), owner);
    }

    function expectState(bytes32 id, uint256 deposit, uint256 settled, uint256 count, bool closed)
        internal
        view
    {
        ChannelState memory state = escrow.getChannel(id);
        vm.assertEq(state.deposit, deposit, "deposit");
        vm.assertEq(state.settled, settled, "settled");
        vm.assertEq(state.count, count, "count");
        vm.assertTrue(state.closed == closed, "closed");
    }

    function expectSkip(Claim memory claim, SkipReason reason) internal {
        (uint128[] memory amounts, SkipReason[] memory reasons) = escrow.previewSettle(one(claim));
        vm.assertEq(amounts[0], 0, "previewed amount");
        vm.assertEq(uint256(reasons[0]), uint256(reason), "previewed reason");
        bytes32 id = escrow.channelId(claim.channel);
        vm.expectEmit(address(escrow));
        emit IEscrow.ClaimSkipped(id, reason);
        settleOne(claim);
    }
}
