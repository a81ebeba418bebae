// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ChannelState} from "../../src/interfaces/IEscrow.sol";
import {Channel, Claim, Terms, WithdrawPooled} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";
import {HostileToken, PlainToken} from "../utils/Tokens.sol";

/// @notice Drives an escrow through random but mostly sensible calls by everybody, a stranger included: two tokens, one
/// of which refuses receivers and burns gas at times; two payers; a receiver who is a payer; parties that coincide;
/// batches with duplicates and forgeries. Calls that the rules refuse are not made, so that each sequence gets
/// far; every refusal has a unit test.
contract EscrowHandler is EscrowBase {
    uint256 public constant CHANNELS = 8;
    uint256 private constant ROWS = 5;
    uint256 private constant SECOND_KEY = 0xC0FFEE;

    HostileToken public hostile;
    address public second = vm.addr(SECOND_KEY);
    address[] public people;
    Channel[] private _channels;
    /// @notice Sent to the escrow without a deposit, by token.
    mapping(address => uint256) public donated;
    /// @notice What each receiver must have got: settled amounts and fees, by token and receiver.
    mapping(address => mapping(address => uint256)) public earned;
    /// @notice Fees for submitting orders.
    mapping(address => uint256) public relayed;
    uint256 public regressions;
    uint256 public mismatches;
    mapping(uint256 => ChannelState) private _seen;

    constructor() {
        setUp();
        hostile = new HostileToken();
        people = [payer, second, receiver, authorizer, operator, stranger];
        for (uint256 i = 0; i < CHANNELS; ++i) {
            Channel memory channel = channelOf(i);
            if (i & 1 == 1) channel.token = address(hostile);
            if (i & 2 == 2) channel.payer = second;
            if (i & 4 == 4) channel.receiver = second;
            if (i == 7) (channel.operator, channel.authorizer) = (second, second);
            _channels.push(channel);
        }
        _wealth(payer);
        _wealth(second);
    }

    function _wealth(address who) private {
        token.mint(who, 1e15);
        hostile.mint(who, 1e15);
        vm.prank(who);
        token.approve(address(escrow), type(uint256).max);
        vm.prank(who);
        hostile.approve(address(escrow), type(uint256).max);
    }

    /// @dev Whatever happens, no number of any channel goes back.
    modifier watched() {
        _;
        for (uint256 i = 0; i < CHANNELS; ++i) {
            (ChannelState memory now_, ChannelState storage seen) = (stateOf(i), _seen[i]);
            if (
                now_.funded < seen.funded || now_.settled < seen.settled || now_.withdrawn < seen.withdrawn
                    || now_.requests < seen.requests || (seen.closed && !now_.closed)
            ) ++regressions;
            _seen[i] = now_;
        }
    }

    // ------------------------------------------------------------------ pooled balances

    function deposit(uint256 who, uint256 amount, bool plain) external watched {
        address from = who & 1 == 0 ? payer : second;
        vm.prank(from);
        escrow.deposit(_token(plain), bound(amount, 1, POOLED), people[who % people.length]);
    }

    function donate(uint256 amount, bool plain) external watched {
        amount = bound(amount, 0, 1e9);
        PlainToken(_token(plain)).mint(address(escrow), amount);
        donated[_token(plain)] += amount;
    }

    function withdrawBalance(uint256 who, uint256 amount, bool plain, bool relay, uint256 fee)
        external
        watched
    {
        (address token_, address owner) = (_token(plain), people[who % people.length]);
        uint256 balance = escrow.balanceOf(token_, owner);
        if (balance == 0 || _refused(token_, owner) || _refused(token_, stranger)) return;
        fee = relay && balance > 1 ? bound(fee, 0, balance / 2) : 0;
        amount = bound(amount, 1, balance - fee);
        // The receiver has no key here, and what it has counts as earned. Strangers keep deposits that were given them.
        if (owner == receiver || owner == stranger) return;
        if (!relay) {
            vm.prank(owner);
            escrow.withdrawBalance(token_, amount, owner);
            return;
        }
        WithdrawPooled memory order = WithdrawPooled(
            owner, token_, uint128(amount), owner, uint128(fee), escrow.withdrawalNonce(owner), SOON
        );
        bytes memory signature = orderSignature(_key(owner), order);
        relayed[token_] += fee;
        vm.prank(stranger);
        escrow.withdrawBalanceFor(order, signature);
    }

    function pushPayout(uint256 who, bool plain) external watched {
        (address token_, address to) = (_token(plain), people[who % people.length]);
        if (escrow.payoutOf(token_, to) == 0 || _refused(token_, to)) return;
        vm.prank(stranger);
        escrow.pushPayout(token_, to);
    }

    /// @dev The hostile token changes its mind about a receiver, or about burning gas.
    function trouble(uint256 who, bool yes, bool burns) external watched {
        if (burns) hostile.burn(yes);
        else hostile.setBlocked(people[who % people.length], yes);
    }

    // ------------------------------------------------------------------ channels

    function fund(uint256 index, uint256 amount, uint256 fee, bool relay) external watched {
        Channel memory channel = _channels[index % CHANNELS];
        ChannelState memory state = stateOf(index % CHANNELS);
        uint256 available = escrow.balanceOf(channel.token, channel.payer);
        if (state.closed || available < 2) return;
        if (available > DEPOSIT) available = DEPOSIT;
        fee = bound(fee, 0, available / 8);
        uint128 total = state.funded + uint128(bound(amount, 1, available - fee));
        bytes memory signature = fundSignature(_key(channel.payer), channel, total, uint128(fee), SOON);
        earned[channel.token][channel.receiver] += fee;
        vm.prank(relay ? stranger : channel.payer);
        escrow.fund(channel, total, uint128(fee), SOON, signature);
    }

    function openWithAuthorization(uint256 index, uint256 amount, uint256 fee) external watched {
        Channel memory channel = _channels[index % CHANNELS];
        if (stateOf(index % CHANNELS).closed) return;
        (amount, fee) = (bound(amount, 1, DEPOSIT), bound(fee, 0, DEPOSIT / 8));
        bytes memory signature = openingSignature(_key(channel.payer), channel, uint128(amount), uint128(fee));
        earned[channel.token][channel.receiver] += fee;
        vm.prank(stranger);
        escrow.openWithAuthorization(channel, uint128(amount), uint128(fee), 0, type(uint256).max, signature);
    }

    /// @dev Rows with any amounts, now and then twice or forged: nothing here may revert, and it must do what the
    /// preview says.
    function settle(uint256[ROWS] calldata which, uint128[ROWS] calldata amounts, uint256 forge)
        external
        watched
    {
        Claim[] memory claims = new Claim[](ROWS);
        for (uint256 i = 0; i < ROWS; ++i) {
            claims[i] = _claim(which[i] % CHANNELS, amounts[i], (forge >> i) & 3 == 3);
        }
        (uint128[] memory previewed,) = escrow.previewSettle(claims);
        uint256 before = _settled();
        uint256 expected = 0;
        for (uint256 i = 0; i < ROWS; ++i) {
            expected += previewed[i];
            earned[claims[i].channel.token][claims[i].channel.receiver] += previewed[i];
        }
        vm.prank(stranger);
        escrow.settle(claims);
        if (_settled() - before != expected) ++mismatches;
    }

    /// @dev Channels 0 and 2 share receiver, operator and token, as do 1 and 3, 4 and 6.
    function settlePacked(uint256 pair, uint128[ROWS] calldata amounts, uint256 forge) external watched {
        uint256 first = [uint256(0), 1, 4][pair % 3];
        Claim[] memory claims = new Claim[](ROWS);
        for (uint256 i = 0; i < ROWS; ++i) {
            claims[i] = _claim(first + 2 * ((forge >> (8 + i)) & 1), amounts[i], (forge >> i) & 3 == 3);
        }
        (uint128[] memory previewed,) = escrow.previewSettle(claims);
        uint256 before = _settled();
        uint256 expected = 0;
        for (uint256 i = 0; i < ROWS; ++i) {
            expected += previewed[i];
        }
        Terms memory terms = termsOf(_channels[first]);
        earned[terms.token][terms.receiver] += expected;
        bytes memory rows = pack(claims);
        vm.prank(stranger);
        escrow.settlePacked(terms, rows);
        if (_settled() - before != expected) ++mismatches;
    }

    function close(uint256 index, uint128 amount, uint256 fee, bool relay) external watched {
        (Channel memory channel, ChannelState memory state) =
            (_channels[index % CHANNELS], stateOf(index % CHANNELS));
        // Rarely, or every sequence ends with nothing open.
        if (state.closed || state.funded == 0 || amount % 8 != 0) return;
        fee = bound(fee, 0, DEPOSIT / 8);
        uint128 total = uint128(bound(amount, 0, uint256(state.funded) * 2));
        Claim memory claim = claimBy(_key(channel.authorizer), channel, total, 1);
        if (fee > 0) claim.signature = closeSignature(_key(channel.authorizer), claim, uint128(fee));
        bytes memory agreed = closeSignature(_key(channel.operator), claim, uint128(fee));
        uint256 pool_ = escrow.balanceOf(channel.token, channel.payer);
        vm.prank(relay ? stranger : channel.operator);
        escrow.close(claim, uint128(fee), agreed);
        uint256 refund = escrow.balanceOf(channel.token, channel.payer) - pool_;
        uint256 left = state.funded - state.settled - state.withdrawn;
        earned[channel.token][channel.receiver] += left - refund;
        uint256 due = total > state.settled ? total - state.settled : 0;
        if (left - refund != (due + fee < left ? due + fee : left)) ++mismatches;
    }

    function requestWithdrawal(uint256 index, uint256 amount, bool all, bool relay) external watched {
        (Channel memory channel, ChannelState memory state) =
            (_channels[index % CHANNELS], stateOf(index % CHANNELS));
        if (state.closed || state.funded == 0 || state.requestedAt != 0) return;
        uint128 wish = all && amount % 4 == 0 ? EVERYTHING : uint128(bound(amount, 1, DEPOSIT));
        bytes memory signature = requestSignature(_key(channel.payer), channel, wish, SOON);
        vm.prank(relay ? stranger : channel.payer);
        escrow.requestWithdrawal(channel, wish, state.requests, SOON, signature);
    }

    function cancelWithdrawal(uint256 index, bool relay) external watched {
        (Channel memory channel, ChannelState memory state) =
            (_channels[index % CHANNELS], stateOf(index % CHANNELS));
        if (state.closed || state.requestedAt == 0) return;
        uint64 nonce = state.requests - 1;
        bytes memory signature = cancelSignature(_key(channel.payer), channel, nonce, SOON);
        vm.prank(relay ? stranger : channel.payer);
        escrow.cancelWithdrawal(channel, nonce, SOON, signature);
    }

    function withdraw(uint256 index, uint256 wait) external watched {
        vm.warp(block.timestamp + bound(wait, 0, DELAY));
        ChannelState memory state = stateOf(index % CHANNELS);
        if (state.closed || state.requestedAt == 0) return;
        if (block.timestamp < state.requestedAt + DELAY) return;
        vm.prank(stranger);
        escrow.withdraw(_channels[index % CHANNELS]);
    }

    // ------------------------------------------------------------------ what the invariants read

    function stateOf(uint256 index) public view returns (ChannelState memory) {
        return escrow.getChannel(escrow.channelId(_channels[index]));
    }

    function main() external view returns (address) {
        return address(token);
    }

    function held(address token_) external view returns (uint256) {
        return PlainToken(token_).balanceOf(address(escrow));
    }

    function owed(address token_) external view returns (uint256 sum) {
        for (uint256 i = 0; i < people.length; ++i) {
            sum += escrow.balanceOf(token_, people[i]) + escrow.payoutOf(token_, people[i]);
        }
        for (uint256 i = 0; i < CHANNELS; ++i) {
            ChannelState memory state = stateOf(i);
            if (_channels[i].token != token_ || state.closed) continue;
            sum += state.funded - state.withdrawn - state.settled;
        }
    }

    /// @notice What the receiver has and what waits for it; nobody else pays it in these sequences.
    function got(address token_) external view returns (uint256) {
        return PlainToken(token_).balanceOf(receiver) + escrow.payoutOf(token_, receiver);
    }

    function due(address token_) external view returns (uint256) {
        return earned[token_][receiver];
    }

    function strangersMoney(address token_) external view returns (uint256) {
        return PlainToken(token_).balanceOf(stranger) + escrow.payoutOf(token_, stranger);
    }

    // ------------------------------------------------------------------ helpers

    function _token(bool plain) private view returns (address) {
        return plain ? address(token) : address(hostile);
    }

    function _refused(address token_, address to) private view returns (bool) {
        return token_ == address(hostile) && (hostile.burning() || hostile.blocked(to));
    }

    function _key(address who) private view returns (uint256) {
        if (who == payer) return PAYER_KEY;
        if (who == second) return SECOND_KEY;
        if (who == authorizer) return AUTHORIZER_KEY;
        if (who == operator) return OPERATOR_KEY;
        return STRANGER_KEY;
    }

    function _settled() private view returns (uint256 sum) {
        for (uint256 i = 0; i < CHANNELS; ++i) {
            sum += stateOf(i).settled;
        }
    }

    function _claim(uint256 index, uint128 amount, bool forged) private view returns (Claim memory) {
        uint128 total = uint128(bound(amount, 0, uint256(stateOf(index).funded) + DEPOSIT / 8));
        Channel memory channel = _channels[index];
        return claimBy(forged ? STRANGER_KEY : _key(channel.authorizer), channel, total, 1);
    }
}
