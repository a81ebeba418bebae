// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Escrow} from "../src/Escrow.sol";
import {ChannelState} from "../src/interfaces/IEscrow.sol";
import {Channel, Claim, Terms} from "../src/libraries/PieceworkTypes.sol";
import {BookToken, SVM, VM} from "./Symbolic.sol";

/// @notice What one call does to any channel in any state, proved by halmos for all inputs at once (`make halmos`).
/// `check_` functions must hold. Each `fails_` function is the negation of one: halmos must find a counterexample,
/// or the proof beside it says nothing.
contract EscrowSymbolic {
    SVM private constant svm = SVM(0xF3993A62377BCd56AE39D773740A5390411E8BC9);
    VM private constant vm = VM(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);
    /// @dev Place of the accounts in the escrow's storage, after the two of EIP712 and two mappings.
    uint256 private constant ACCOUNTS = 4;

    Escrow private escrow;
    BookToken private token;

    struct Before {
        ChannelState state;
        uint256 left;
        uint256 receiverWaits;
        uint256 payerPooled;
    }

    function setUp() public {
        escrow = new Escrow();
        token = new BookToken();
    }

    /// @dev Any channel of the token.
    function _channel() private returns (Channel memory c) {
        svm.enableSymbolicStorage(address(escrow));
        c.payer = svm.createAddress("payer");
        c.authorizer = svm.createAddress("authorizer");
        c.receiver = svm.createAddress("receiver");
        c.operator = svm.createAddress("operator");
        c.token = address(token);
        c.withdrawalDelay = uint64(svm.createUint(64, "delay"));
        c.salt = svm.createBytes32("salt");
        vm.assume(c.receiver != address(escrow));
    }

    /// @dev Any state that the invariants allow, and what belongs to the parties before the call.
    function _before(bytes32 id, Channel memory c) private returns (Before memory b) {
        b.state = escrow.getChannel(id);
        vm.assume(uint256(b.state.settled) + b.state.withdrawn <= b.state.funded);
        bool reduced = uint256(vm.load(address(escrow), keccak256(abi.encode(id, ACCOUNTS)))) >> 193 & 1 == 1;
        vm.assume(reduced == (b.state.withdrawn > 0));
        b.left = b.state.closed ? 0 : uint256(b.state.funded) - b.state.settled - b.state.withdrawn;
        token.set(address(escrow), b.left);
        b.receiverWaits = escrow.payoutOf(address(token), c.receiver);
        b.payerPooled = escrow.balanceOf(address(token), c.payer);
        // No balance of a token is near the end of its type.
        vm.assume(b.receiverWaits < 2 ** 200 && b.payerPooled < 2 ** 200);
    }

    function _claim(Channel memory c) private returns (Claim memory) {
        return Claim(
            c,
            uint128(svm.createUint(128, "cumulative")),
            uint64(svm.createUint(64, "count")),
            svm.createBytes32("root"),
            svm.createBytes(65, "signature")
        );
    }

    /// @dev What a receiver got, in its hand or waiting. Its hand was empty. The escrow never asks what is in it.
    /// Unchecked: the sum of a loss would be a number that no two amounts reach.
    function _gained(Channel memory c, Before memory b) private view returns (uint256) {
        unchecked {
            return
                token.balanceOf(c.receiver) + (escrow.payoutOf(address(token), c.receiver) - b.receiverWaits);
        }
    }

    // ------------------------------------------------------------------ settle, one row

    function _settled(Channel memory c, bytes32 id, Before memory b, uint128 cumulative) private view {
        ChannelState memory a = escrow.getChannel(id);
        assert(a.funded == b.state.funded && a.withdrawn == b.state.withdrawn && a.closed == b.state.closed);
        assert(a.requested == b.state.requested && a.requests == b.state.requests);
        assert(a.settled >= b.state.settled && uint256(a.settled) + a.withdrawn <= a.funded);
        assert(_gained(c, b) == a.settled - b.state.settled);
        assert(escrow.balanceOf(address(token), c.payer) == b.payerPooled);
        if (b.state.closed || cumulative <= b.state.settled) assert(a.settled == b.state.settled);
        if (a.settled > b.state.settled) {
            uint256 available = uint256(a.funded) - a.withdrawn;
            assert(a.settled == (cumulative < available ? cumulative : available));
        }
    }

    function check_settle() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        Before memory b = _before(id, c);
        Claim[] memory claims = new Claim[](1);
        claims[0] = _claim(c);
        escrow.settle(claims);
        _settled(c, id, b, claims[0].cumulative);
    }

    function fails_settle() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        Before memory b = _before(id, c);
        Claim[] memory claims = new Claim[](1);
        claims[0] = _claim(c);
        escrow.settle(claims);
        assert(escrow.getChannel(id).settled == b.state.settled);
    }

    // ------------------------------------------------------------------ settlePacked, one row

    function _packed(Channel memory c, Claim memory claim) private {
        bytes memory row = abi.encodePacked(
            c.payer,
            c.authorizer,
            c.salt,
            claim.cumulative,
            claim.count,
            claim.receiptsRoot,
            svm.createBytes32("r"),
            svm.createBytes32("vs")
        );
        escrow.settlePacked(Terms(c.receiver, c.operator, c.token, c.withdrawalDelay), row);
    }

    function check_settle_packed() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        Before memory b = _before(id, c);
        Claim memory claim = _claim(c);
        _packed(c, claim);
        _settled(c, id, b, claim.cumulative);
    }

    function fails_settle_packed() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        Before memory b = _before(id, c);
        _packed(c, _claim(c));
        assert(escrow.getChannel(id).settled == b.state.settled);
    }

    // ------------------------------------------------------------------ fund

    function check_fund() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        Before memory b = _before(id, c);
        (uint128 funded, uint128 fee) =
            (uint128(svm.createUint(128, "funded")), uint128(svm.createUint(128, "fee")));
        vm.prank(c.payer);
        escrow.fund(c, funded, fee, type(uint64).max, "");
        ChannelState memory a = escrow.getChannel(id);
        assert(!b.state.closed && !a.closed);
        assert(a.funded == funded && funded > b.state.funded && funded <= type(uint96).max);
        assert(a.settled == b.state.settled && a.withdrawn == b.state.withdrawn);
        assert(_gained(c, b) == fee);
        uint256 spent = b.payerPooled - escrow.balanceOf(address(token), c.payer);
        assert(spent == uint256(funded) - b.state.funded + fee);
        if (b.state.funded == 0) assert(c.withdrawalDelay >= 60 && c.withdrawalDelay <= 30 days);
    }

    function fails_fund() public {
        Channel memory c = _channel();
        _before(escrow.channelId(c), c);
        vm.prank(c.payer);
        escrow.fund(c, uint128(svm.createUint(128, "funded")), 1, type(uint64).max, "");
        assert(false);
    }

    // ------------------------------------------------------------------ openWithAuthorization

    function _opened(Channel memory c, uint128 amount, uint128 fee) private {
        vm.assume(c.payer != address(escrow));
        token.set(c.payer, uint256(amount) + fee);
        escrow.openWithAuthorization(c, amount, fee, 0, 1, new bytes(65));
    }

    function check_open_with_authorization() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        Before memory b = _before(id, c);
        (uint128 amount, uint128 fee) =
            (uint128(svm.createUint(128, "amount")), uint128(svm.createUint(128, "fee")));
        _opened(c, amount, fee);
        ChannelState memory a = escrow.getChannel(id);
        assert(!b.state.closed && !a.closed && amount > 0);
        assert(a.funded == uint256(b.state.funded) + amount);
        assert(a.settled == b.state.settled && a.withdrawn == b.state.withdrawn);
        assert(escrow.payoutOf(address(token), c.receiver) == b.receiverWaits + fee);
        assert(escrow.balanceOf(address(token), c.payer) == b.payerPooled);
        assert(token.balanceOf(address(escrow)) == b.left + amount + fee);
    }

    function fails_open_with_authorization() public {
        Channel memory c = _channel();
        _before(escrow.channelId(c), c);
        _opened(c, uint128(svm.createUint(128, "amount")), 1);
        assert(false);
    }

    // ------------------------------------------------------------------ close

    function check_close() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        Before memory b = _before(id, c);
        Claim memory claim = _claim(c);
        uint128 fee = uint128(svm.createUint(128, "fee"));
        vm.prank(c.operator);
        escrow.close(claim, fee, "");
        ChannelState memory a = escrow.getChannel(id);
        assert(!b.state.closed && b.state.funded > 0 && a.closed);
        assert(a.funded == b.state.funded && a.withdrawn == b.state.withdrawn);
        assert(a.settled >= b.state.settled && uint256(a.settled) + a.withdrawn <= a.funded);
        // The fee is charged of what is left, and the payer gets the rest. Unchecked: the line above bounds `paid`.
        unchecked {
            uint256 paid = uint256(a.settled) - b.state.settled;
            uint256 charged = fee < b.left - paid ? fee : b.left - paid;
            assert(_gained(c, b) == paid + charged);
            assert(escrow.balanceOf(address(token), c.payer) - b.payerPooled == b.left - paid - charged);
        }
        assert(a.requested == 0 && a.requestedAt == 0);
    }

    function fails_close() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        Before memory b = _before(id, c);
        Claim memory claim = _claim(c);
        vm.prank(c.operator);
        escrow.close(claim, 1, "");
        assert(escrow.getChannel(id).settled == b.state.settled);
    }

    // ------------------------------------------------------------------ requestWithdrawal, cancelWithdrawal, withdraw

    function check_request() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        Before memory b = _before(id, c);
        vm.warp(svm.createUint(39, "now"));
        (uint128 amount, uint64 nonce) =
            (uint128(svm.createUint(128, "amount")), uint64(svm.createUint(64, "nonce")));
        vm.prank(c.payer);
        escrow.requestWithdrawal(c, amount, nonce, type(uint64).max, "");
        ChannelState memory a = escrow.getChannel(id);
        assert(!b.state.closed && b.state.requestedAt == 0 && nonce == b.state.requests);
        assert(a.requests == b.state.requests + 1 && a.requested == amount && amount > 0);
        assert(a.requestedAt == block.timestamp && a.withdrawn == b.state.withdrawn);
        assert(a.funded == b.state.funded && a.settled == b.state.settled && !a.closed);
        assert(escrow.balanceOf(address(token), c.payer) == b.payerPooled && _gained(c, b) == 0);
    }

    function fails_request() public {
        Channel memory c = _channel();
        _before(escrow.channelId(c), c);
        vm.warp(svm.createUint(39, "now"));
        vm.prank(c.payer);
        escrow.requestWithdrawal(c, 5, uint64(svm.createUint(64, "nonce")), type(uint64).max, "");
        assert(false);
    }

    function check_cancel() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        Before memory b = _before(id, c);
        uint64 nonce = uint64(svm.createUint(64, "nonce"));
        vm.prank(c.payer);
        escrow.cancelWithdrawal(c, nonce, type(uint64).max, "");
        ChannelState memory a = escrow.getChannel(id);
        assert(!b.state.closed && b.state.requestedAt != 0 && nonce + 1 == b.state.requests);
        assert(a.requested == 0 && a.requestedAt == 0 && a.requests == b.state.requests);
        assert(a.funded == b.state.funded && a.settled == b.state.settled && !a.closed);
        assert(a.withdrawn == b.state.withdrawn);
        assert(escrow.balanceOf(address(token), c.payer) == b.payerPooled && _gained(c, b) == 0);
    }

    function fails_cancel() public {
        Channel memory c = _channel();
        _before(escrow.channelId(c), c);
        vm.prank(c.payer);
        escrow.cancelWithdrawal(c, uint64(svm.createUint(64, "nonce")), type(uint64).max, "");
        assert(false);
    }

    function check_withdraw() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        Before memory b = _before(id, c);
        vm.warp(svm.createUint(64, "now"));
        escrow.withdraw(c);
        ChannelState memory a = escrow.getChannel(id);
        assert(!b.state.closed && b.state.requestedAt != 0);
        assert(block.timestamp >= uint256(b.state.requestedAt) + c.withdrawalDelay);
        assert(a.funded == b.state.funded && a.settled == b.state.settled && a.requestedAt == 0);
        uint256 refund = escrow.balanceOf(address(token), c.payer) - b.payerPooled;
        bool everything = b.state.requested == type(uint96).max;
        assert(a.closed == everything);
        assert(refund == (b.state.requested < b.left ? b.state.requested : b.left));
        assert(a.withdrawn == (everything ? b.state.withdrawn : b.state.withdrawn + refund));
        assert(_gained(c, b) == 0);
    }

    function fails_withdraw() public {
        Channel memory c = _channel();
        bytes32 id = escrow.channelId(c);
        _before(id, c);
        vm.warp(svm.createUint(64, "now"));
        escrow.withdraw(c);
        assert(escrow.getChannel(id).closed);
    }
}
