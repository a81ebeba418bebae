// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Channel, Claim} from "../libraries/PieceworkTypes.sol";

/// @notice What the chain knows about a channel. Two storage words; settling touches the first only.
/// @param deposit total ever put into the channel, base units; equals `settled` once the channel is closed
/// @param settled paid to the receiver so far; never decreases, never above `deposit`
/// @param count highest receipt count among the settled vouchers: information, no rule depends on it
/// @param withdrawalRequestedAt block time of the payer's withdrawal request, 0 for none
/// @param closed final: a closed channel never opens again
struct ChannelState {
    uint96 deposit;
    uint96 settled;
    uint64 count;
    uint64 withdrawalRequestedAt;
    bool closed;
}

/// @notice Why a claim pays nothing.
enum SkipReason {
    None,
    UnknownChannel,
    Closed,
    NothingNew,
    DepositExhausted,
    BadSignature
}

/// @title Escrow: prepaid balances and payment channels that settle by cumulative vouchers
/// @notice Immutable: no owner, no proxy, no pause, no fee. Money leaves a payer only by the payer's call or
/// signature, and leaves a channel only by the authorizer's voucher or back to the payer.
///
/// What always holds, per token:
///   the escrow's token balance >= sum of pooled balances + sum over channels of (deposit - settled),
///   with equality unless somebody sends tokens here without a deposit (those stay here for good);
///   settled <= deposit, and settled, deposit of an open channel and closed never go back.
///
/// Assumptions, for whoever accepts a token or a channel:
/// - Tokens are plain ERC-20: no rebasing, no fee on transfer (a deposit that arrives short reverts), no false
///   return after moving money. A token that breaks this harms only the balances kept in that token.
/// - Vouchers are checked by ECDSA against the `authorizer` in the channel id, never through ERC-1271: a payer who
///   delegates its code (EIP-7702) cannot void a voucher after the work. The payer's own signatures
///   (FundChannel, RequestWithdrawal) are ECDSA first, then ERC-1271 if the payer has code.
/// - The authorizer may sign several vouchers for one cumulative amount; what pays is the amount alone. A count or
///   root that an authorizer makes up is its own evidence against itself and cannot block a payment.
/// - The operator's key can close a channel early, which returns what is unsettled to the payer. It cannot send
///   money anywhere else. A worker bounds this by settling before much is unsettled.
/// - The worker must see a withdrawal request and settle inside `withdrawalDelay`.
interface IEscrow {
    event Deposited(address indexed token, address indexed beneficiary, address indexed from, uint256 amount);
    event BalanceWithdrawn(address indexed token, address indexed owner, address indexed to, uint256 amount);
    /// @notice Emitted once, with everything that a payer or worker who lost its records needs to get its money.
    event ChannelOpened(
        bytes32 indexed channelId, address indexed payer, address indexed operator, Channel channel
    );
    /// @param deposit the channel's new total
    /// @param added taken from the payer's pooled balance
    event ChannelFunded(bytes32 indexed channelId, uint128 deposit, uint128 added);
    /// @param amount paid by this claim
    /// @param cumulative what the voucher says, which may be above the deposit
    event Settled(
        bytes32 indexed channelId,
        address indexed receiver,
        uint128 amount,
        uint128 cumulative,
        uint64 count,
        bytes32 receiptsRoot
    );
    event ClaimSkipped(bytes32 indexed channelId, SkipReason reason);
    /// @notice The token refused the transfer to a receiver, so the amount went to its pooled balance.
    event PayoutCredited(address indexed token, address indexed receiver, uint256 amount);
    event WithdrawalRequested(bytes32 indexed channelId, uint64 withdrawableAt);
    /// @param settled what the receiver got in all
    /// @param refund what went back to the payer's pooled balance
    event ChannelClosed(bytes32 indexed channelId, address indexed payer, uint128 settled, uint128 refund);

    error ZeroAmount();
    error BadBeneficiary(address beneficiary);
    error DepositMismatch(address token, uint256 expected, uint256 received);
    error PermitNotSigned(address token, address owner);
    error InsufficientBalance(address token, address owner, uint256 balance, uint256 needed);
    error Expired(uint256 deadline, uint256 blockTime);
    error BadSignature(address expectedSigner);
    error BadParty(address party);
    error WithdrawalDelayOutOfRange(uint64 delay, uint64 minimum, uint64 maximum);
    error DepositTooLarge(uint128 deposit, uint128 maximum);
    error DepositNotIncreased(bytes32 channelId, uint128 current, uint128 requested);
    error UnknownChannel(bytes32 channelId);
    error ChannelIsClosed(bytes32 channelId);
    error CumulativeBelowSettled(bytes32 channelId, uint128 settled, uint128 cumulative);
    error WithdrawalAlreadyRequested(bytes32 channelId, uint64 requestedAt);
    error WithdrawalNotRequested(bytes32 channelId);
    error WithdrawalTooEarly(bytes32 channelId, uint64 withdrawableAt, uint256 blockTime);

    // ------------------------------------------------------------------ pooled balances

    /// @notice Takes `amount` of `token` from the caller (allowance needed) and credits `beneficiary`.
    function deposit(address token, uint256 amount, address beneficiary) external;

    /// @notice Deposits for `owner` by its EIP-2612 permit; anybody may submit. The owner's signature is checked here
    /// too, so that an allowance that exists for another reason cannot be used by a stranger. Standard permits only.
    function depositWithPermit(
        address token,
        address owner,
        uint256 amount,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;

    /// @notice Deposits for `from` by its EIP-3009 receiveWithAuthorization; anybody may submit.
    function depositWithAuthorization(
        address token,
        address from,
        uint256 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external;

    /// @notice Sends `amount` of the caller's pooled balance to `to`, at once.
    function withdrawBalance(address token, uint256 amount, address to) external;

    // ------------------------------------------------------------------ channels

    /// @notice Raises the channel's total deposit to `newDeposit` out of the payer's pooled balance; opens the channel
    /// the first time. By the payer, or by anybody with the payer's FundChannel signature. Replays fail, since the
    /// total only grows. Still possible while a withdrawal is pending, never after closing.
    function fund(Channel calldata channel, uint128 newDeposit, uint64 deadline, bytes calldata signature)
        external;

    /// @notice Pays each claim what is new in it, at most up to the channel's deposit. Anybody may submit. A row that
    /// pays nothing is skipped with an event and never reverts the batch; neighbours with the same receiver
    /// and token share one transfer.
    function settle(Claim[] calldata claims) external;

    /// @notice Closes at once: settles the last voucher and returns the rest to the payer's pooled balance. By the
    /// receiver or operator, or by anybody with the operator's CloseChannel signature over this claim. With
    /// `claim.cumulative` equal to what is settled, the voucher needs no signature.
    function close(Claim calldata claim, bytes calldata operatorSignature) external;

    /// @notice Starts the withdrawal delay. By the payer, or by anybody with the payer's RequestWithdrawal signature.
    function requestWithdrawal(Channel calldata channel, uint64 deadline, bytes calldata signature) external;

    /// @notice After the delay anybody may close the channel; the rest goes to the payer's pooled balance.
    function withdraw(Channel calldata channel) external;

    // ------------------------------------------------------------------ views

    /// @notice What settle(claims) would do now, row by row (a channel that appears twice included).
    function previewSettle(Claim[] calldata claims)
        external
        view
        returns (uint128[] memory payable_, SkipReason[] memory reasons);

    function balanceOf(address token, address owner) external view returns (uint256);
    function getChannel(bytes32 id) external view returns (ChannelState memory);
    /// @notice The EIP-712 digest of the channel: its id on this chain and escrow.
    function channelId(Channel calldata channel) external view returns (bytes32);
    /// @notice The separator under which every Piecework object is signed.
    function DOMAIN_SEPARATOR() external view returns (bytes32);
    function MIN_WITHDRAWAL_DELAY() external view returns (uint64);
    function MAX_WITHDRAWAL_DELAY() external view returns (uint64);
    function MAX_CHANNEL_DEPOSIT() external view returns (uint128);
}
