// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ChannelState} from "../../src/interfaces/IEscrow.sol";
import {Channel, Claim} from "../../src/libraries/PieceworkTypes.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";

/// @notice Drives an escrow through random but mostly sensible calls by everybody, a stranger included. Calls that
/// the rules refuse are not made, so that each sequence gets far; every refusal has a unit test.
contract EscrowHandler is EscrowBase {
    uint256 public constant CHANNELS = 4;

    Channel[] internal _channels;
    /// @notice Sent to the escrow without a deposit.
    uint256 public donated;
    /// @notice Minted into deposits, minus what owners withdrew.
    uint256 public netDeposited;
    /// @notice Paid out by settlements and closings.
    uint256 public paid;
    /// @notice Highest settled amount seen, by channel.
    mapping(uint256 => uint256) public settledSeen;
    mapping(uint256 => bool) public closedSeen;
    uint256 public regressions;

    constructor() {
        setUp();
        netDeposited = POOLED;
        for (uint256 i = 0; i < CHANNELS; ++i) {
            Channel memory channel = channelOf(i);
            if (i == 3) channel.receiver = address(0x4EC32);
            _channels.push(channel);
        }
    }

    modifier watched() {
        uint256 before = token.balanceOf(receiver) + token.balanceOf(address(0x4EC32));
        _;
        paid += token.balanceOf(receiver) + token.balanceOf(address(0x4EC32)) - before;
        for (uint256 i = 0; i < CHANNELS; ++i) {
            ChannelState memory state = stateOf(i);
            if (state.settled < settledSeen[i] || (closedSeen[i] && !state.closed)) ++regressions;
            settledSeen[i] = state.settled;
            closedSeen[i] = state.closed;
        }
    }

    function deposit(uint256 amount) external watched {
        amount = bound(amount, 1, POOLED);
        pool(payer, amount);
        netDeposited += amount;
    }

    function donate(uint256 amount) external watched {
        amount = bound(amount, 0, 1e12);
        token.mint(address(escrow), amount);
        donated += amount;
    }

    function withdrawBalance(uint256 amount) external watched {
        uint256 balance = pooled(payer);
        if (balance == 0) return;
        amount = bound(amount, 1, balance);
        vm.prank(payer);
        escrow.withdrawBalance(address(token), amount, payer);
        netDeposited -= amount;
    }

    function fund(uint256 index, uint256 amount, bool relayed) external watched {
        Channel memory channel = _channels[index % CHANNELS];
        ChannelState memory state = stateOf(index % CHANNELS);
        uint256 available = pooled(payer) < DEPOSIT ? pooled(payer) : DEPOSIT;
        if (state.closed || available == 0) return;
        uint128 total = state.deposit + uint128(bound(amount, 1, available));
        bytes memory signature = fundSignature(PAYER_KEY, channel, total, SOON);
        vm.prank(relayed ? stranger : payer);
        escrow.fund(channel, total, SOON, signature);
    }

    /// @dev Two rows, any amounts, now and then a forged one: nothing here may revert.
    function settle(uint256 first, uint256 second, uint128 amountA, uint128 amountB, uint8 forge)
        external
        watched
    {
        Claim[] memory claims = new Claim[](2);
        claims[0] = _claim(first % CHANNELS, amountA, forge % 4 == 1);
        claims[1] = _claim(second % CHANNELS, amountB, forge % 4 == 2);
        vm.prank(stranger);
        escrow.settle(claims);
    }

    function close(uint256 index, uint128 amount, bool relayed) external watched {
        ChannelState memory state = stateOf(index % CHANNELS);
        // Rarely, or every sequence ends with nothing open.
        if (state.closed || state.deposit == 0 || amount % 8 != 0) return;
        uint128 total = uint128(bound(amount, state.settled, uint256(state.deposit) * 2));
        Claim memory claim = claimOf(_channels[index % CHANNELS], total, 1);
        bytes memory agreed = closeSignature(OPERATOR_KEY, claim);
        vm.prank(relayed ? stranger : operator);
        escrow.close(claim, agreed);
    }

    function requestWithdrawal(uint256 index) external watched {
        ChannelState memory state = stateOf(index % CHANNELS);
        if (state.closed || state.deposit == 0 || state.withdrawalRequestedAt != 0) return;
        vm.prank(payer);
        escrow.requestWithdrawal(_channels[index % CHANNELS], SOON, "");
    }

    function withdraw(uint256 index, uint256 wait) external watched {
        vm.warp(block.timestamp + bound(wait, 0, DELAY));
        ChannelState memory state = stateOf(index % CHANNELS);
        if (state.closed || state.withdrawalRequestedAt == 0) return;
        if (block.timestamp < state.withdrawalRequestedAt + DELAY) return;
        vm.prank(stranger);
        escrow.withdraw(_channels[index % CHANNELS]);
    }

    function stateOf(uint256 index) public view returns (ChannelState memory) {
        return escrow.getChannel(escrow.channelId(_channels[index]));
    }

    function held() external view returns (uint256) {
        return token.balanceOf(address(escrow));
    }

    function owed() external view returns (uint256 sum) {
        sum = pooled(payer) + pooled(receiver) + pooled(stranger);
        for (uint256 i = 0; i < CHANNELS; ++i) {
            ChannelState memory state = stateOf(i);
            sum += state.deposit - state.settled;
        }
    }

    function strangersMoney() external view returns (uint256) {
        return token.balanceOf(stranger) + pooled(stranger) + token.balanceOf(authorizer) + pooled(authorizer)
            + token.balanceOf(operator) + pooled(operator);
    }

    function _claim(uint256 index, uint128 amount, bool forged) private view returns (Claim memory) {
        uint128 total = uint128(bound(amount, 0, uint256(stateOf(index).deposit) + DEPOSIT / 8));
        return claimBy(forged ? STRANGER_KEY : AUTHORIZER_KEY, _channels[index], total, 1);
    }
}
