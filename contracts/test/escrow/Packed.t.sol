// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IEscrow, SkipReason} from "../../src/interfaces/IEscrow.sol";
import {Channel, Claim, Terms} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";
import {Vm} from "../utils/Vm.sol";

/// @notice settlePacked against two other readings of the same bytes: settle itself, and a slow parser that slices the
/// rows byte by byte.
contract PackedTest is EscrowBase {
    struct Row {
        address payer;
        address authorizer;
        bytes32 salt;
        uint128 cumulative;
        uint64 count;
        bytes32 receiptsRoot;
        bytes32 r;
        bytes32 vs;
    }

    /// @dev A number from `length` big-endian bytes: no casts of words, no offsets in words.
    function _number(bytes memory rows, uint256 start, uint256 length) private pure returns (uint256 value) {
        for (uint256 i = 0; i < length; ++i) {
            value = value * 256 + uint8(rows[start + i]);
        }
    }

    function _parse(bytes memory rows, uint256 index) private pure returns (Row memory row) {
        uint256 start = index * 192;
        row.payer = address(uint160(_number(rows, start, 20)));
        row.authorizer = address(uint160(_number(rows, start + 20, 20)));
        row.salt = bytes32(_number(rows, start + 40, 32));
        row.cumulative = uint128(_number(rows, start + 72, 16));
        row.count = uint64(_number(rows, start + 88, 8));
        row.receiptsRoot = bytes32(_number(rows, start + 96, 32));
        row.r = bytes32(_number(rows, start + 128, 32));
        row.vs = bytes32(_number(rows, start + 160, 32));
    }

    /// @dev The claim that a row means.
    function _claimOf(Terms memory terms, Row memory row) private pure returns (Claim memory) {
        Channel memory channel = Channel(
            row.payer,
            row.authorizer,
            terms.receiver,
            terms.operator,
            terms.token,
            terms.withdrawalDelay,
            row.salt
        );
        uint256 s = uint256(row.vs) % 2 ** 255;
        uint8 v = uint256(row.vs) / 2 ** 255 == 1 ? 28 : 27;
        bytes memory signature = bytes.concat(row.r, bytes32(s), bytes1(v));
        return Claim(channel, row.cumulative, row.count, row.receiptsRoot, signature);
    }

    function _read(Terms memory terms, bytes memory rows) private pure returns (Claim[] memory claims) {
        claims = new Claim[](rows.length / 192);
        for (uint256 i = 0; i < claims.length; ++i) {
            claims[i] = _claimOf(terms, _parse(rows, i));
        }
    }

    function test_a_packed_row_pays_what_its_voucher_says() public {
        (Channel memory channel, bytes32 id) = open(1);
        settleOne(claimOf(channel, 5, 1));
        bytes memory rows = packOne(claimOf(channel, 12, 3));
        vm.assertEq(rows.length, 192, "bytes of a row");
        vm.expectEmit(address(escrow));
        emit IEscrow.Settled(id, receiver, 7, 12, 3, ROOT);
        vm.prank(stranger);
        escrow.settlePacked(termsOf(channel), rows);
        expectState(id, DEPOSIT, 12, false);
        vm.assertEq(token.balanceOf(receiver), 12, "received");
    }

    function test_rows_of_another_length_are_refused() public {
        (Channel memory channel,) = open(1);
        bytes memory rows = packOne(claimOf(channel, 12, 3));
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadRows.selector, 193));
        escrow.settlePacked(termsOf(channel), bytes.concat(rows, hex"00"));
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadRows.selector, 191));
        escrow.settlePacked(termsOf(channel), new bytes(191));
    }

    function test_no_rows_do_nothing() public {
        escrow.settlePacked(termsOf(channelOf(1)), "");
    }

    function test_rows_that_pay_nothing_touch_no_token() public {
        (Channel memory channel,) = open(1);
        settleOne(claimOf(channel, 5, 1));
        bytes memory row = packOne(claimOf(channel, 5, 1));
        vm.recordLogs();
        escrow.settlePacked(termsOf(channel), row);
        vm.assertEq(vm.getRecordedLogs().length, 1, "ClaimSkipped alone");
    }

    function test_rows_of_zeros_are_skipped() public {
        Channel memory channel = channelOf(0);
        (channel.payer, channel.authorizer) = (address(0), address(0));
        vm.expectEmit(address(escrow));
        emit IEscrow.ClaimSkipped(escrow.channelId(channel), SkipReason.UnknownChannel);
        escrow.settlePacked(termsOf(channel), new bytes(192));
    }

    function test_other_terms_pay_nothing() public {
        (Channel memory channel, bytes32 id) = open(1);
        bytes memory row = packOne(claimOf(channel, 12, 3));
        Terms memory terms = termsOf(channel);
        terms.receiver = stranger;
        escrow.settlePacked(terms, row);
        terms = termsOf(channel);
        terms.operator = stranger;
        escrow.settlePacked(terms, row);
        terms = termsOf(channel);
        terms.withdrawalDelay += 1;
        escrow.settlePacked(terms, row);
        terms = termsOf(channel);
        terms.token = address(hashes);
        escrow.settlePacked(terms, row);
        expectState(id, DEPOSIT, 0, false);
    }

    function testFuzz_a_row_with_one_byte_changed_pays_nothing(uint256 position, uint8 change) public {
        vm.assume(change != 0);
        (Channel memory channel, bytes32 id) = open(1);
        bytes memory row = packOne(claimOf(channel, 5, 1));
        row[bound(position, 0, 191)] ^= bytes1(change);
        escrow.settlePacked(termsOf(channel), row);
        expectState(id, DEPOSIT, 0, false);
        vm.assertEq(token.balanceOf(receiver), 0, "received");
    }

    /// @dev Six rows over three channels, one of them unknown and one reduced: repeated, forged, above the deposit.
    function _randomClaims(uint256 seed) private returns (Claim[] memory claims) {
        Channel[3] memory channels;
        channels[0] = channelOf(99);
        (channels[1],) = open(1);
        (channels[2],) = open(2);
        vm.prank(payer);
        escrow.requestWithdrawal(channels[2], DEPOSIT / 3, 0, SOON, "");
        vm.warp(block.timestamp + DELAY);
        escrow.withdraw(channels[2]);
        claims = new Claim[](6);
        for (uint256 i = 0; i < claims.length; ++i) {
            uint256 random = uint256(keccak256(abi.encode(seed, i)));
            uint256 key = random % 5 == 0 ? STRANGER_KEY : AUTHORIZER_KEY;
            uint128 amount = uint128(bound(random >> 8, 0, DEPOSIT + DEPOSIT / 4));
            claims[i] = claimBy(key, channels[(random >> 200) % 3], amount, uint64(random >> 40));
        }
    }

    function testFuzz_packed_rows_do_what_the_same_claims_do(uint256 seed) public {
        Claim[] memory claims = _randomClaims(seed);
        Terms memory terms = termsOf(claims[0].channel);
        bytes memory rows = pack(claims);
        Claim[] memory parsed = _read(terms, rows);
        vm.assertEq(keccak256(abi.encode(parsed)), keccak256(abi.encode(claims)), "two readings of the bytes");
        (uint128[] memory amounts,) = escrow.previewSettle(parsed);
        uint256 total = 0;
        for (uint256 i = 0; i < amounts.length; ++i) {
            total += amounts[i];
        }
        uint256 snapshot = vm.snapshotState();
        vm.recordLogs();
        escrow.settle(claims);
        Vm.Log[] memory plain = vm.getRecordedLogs();
        vm.assertTrue(vm.revertToState(snapshot), "back");
        vm.recordLogs();
        escrow.settlePacked(terms, rows);
        Vm.Log[] memory packed = vm.getRecordedLogs();
        vm.assertEq(keccak256(abi.encode(packed)), keccak256(abi.encode(plain)), "the same events");
        vm.assertEq(token.balanceOf(receiver), total, "the same money");
    }
}
