// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

import {Channel, Claim, Terms, WithdrawPooled} from "../libraries/PieceworkTypes.sol";

/// @notice What the chain knows about a channel.
/// @param funded total ever put into the channel, base units; never goes down
/// @param settled paid to the receiver so far; never goes down
/// @param withdrawn taken back by partial withdrawals so far; never goes down
/// @param requested what the payer asked to take back: 0 nothing, MAX_CHANNEL_DEPOSIT everything; 0 once closed
/// @param requestedAt block time of that request, 0 for none
/// @param requests withdrawal requests ever made; the nonce of the next one
/// @param closed final: a closed channel never opens again
struct ChannelState {
    uint96 funded;
    uint96 settled;
    uint96 withdrawn;
    uint96 requested;
    uint64 requestedAt;
    uint64 requests;
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
/// @notice Immutable: no owner, no proxy, no pause, no constructor argument. Money leaves a payer only by the payer's
/// call or signature. It leaves a channel only by the authorizer's signature, or back to the payer.
///
/// What always holds (contracts/PROPERTIES.md numbers it and names the tests). For each token:
///   the escrow's token balance >= sum of pooled balances + sum of waiting payouts
///     + sum over open channels of (funded - withdrawn - settled),
///   with equality unless somebody sends tokens here without a deposit (those stay here for good);
///   settled + withdrawn <= funded, and none of the three ever goes down; closed stays closed.
///
/// Assumptions, for everybody who accepts a token or a channel:
/// - Tokens are plain ERC-20: no rebasing, no fee on transfer (a deposit that arrives short reverts), no false
///   return after moving money. A token that breaks this harms only the balances kept in that token.
/// - Vouchers are checked by ECDSA against the `authorizer` in the channel id, never through ERC-1271. So a payer who
///   delegates its code (EIP-7702) cannot void a voucher after the work. The payer's own signatures (FundChannel,
///   RequestWithdrawal, CancelWithdrawal, WithdrawPooled, permits) are ECDSA first, then ERC-1271 if it has code.
/// - The authorizer may sign several vouchers for one cumulative amount. Only the amount decides what is paid.
/// - The operator's key can close a channel early, which returns what is unsettled to the payer. It cannot send
///   money anywhere else. A worker bounds this by settling before much is unsettled.
/// - The worker must see a withdrawal request and settle inside `withdrawalDelay`.
/// - A payout gets at most TRANSFER_GAS. A token that needs more is not sent by settlements: its payouts wait until
///   somebody calls pushPayout, which has no such limit.
/// - Channels are bound to the chain id. A chain that changes its id locks the channels that were opened before.
interface IEscrow {
    /// @notice Tokens came in.
    /// @param token the ERC-20
    /// @param beneficiary whose pooled balance grew
    /// @param from whose tokens were taken
    /// @param amount base units
    event Deposited(address indexed token, address indexed beneficiary, address indexed from, uint256 amount);
    /// @notice Pooled money went out.
    /// @param token the ERC-20
    /// @param owner whose pooled balance shrank by `amount` and `fee`
    /// @param to who got `amount`
    /// @param amount base units
    /// @param fee base units that the submitter of a signed order got; 0 for a call by the owner
    event BalanceWithdrawn(
        address indexed token, address indexed owner, address indexed to, uint256 amount, uint256 fee
    );
    /// @notice Emitted once, with everything that a payer or worker who lost its records needs to get its money.
    /// @param channelId the channel
    /// @param payer its payer
    /// @param operator its operator
    /// @param channel its terms
    event ChannelOpened(
        bytes32 indexed channelId, address indexed payer, address indexed operator, Channel channel
    );
    /// @notice The channel got money.
    /// @param channelId the channel
    /// @param funded its new total
    /// @param added what it got now
    /// @param fee what the receiver got beside it
    event ChannelFunded(bytes32 indexed channelId, uint128 funded, uint128 added, uint128 fee);
    /// @notice A claim was paid.
    /// @param channelId the channel
    /// @param receiver who was paid
    /// @param amount paid by this claim
    /// @param cumulative what the voucher says, which may be above what the channel holds
    /// @param count receipts that the voucher pays
    /// @param receiptsRoot root of the Merkle tree over those receipts
    event Settled(
        bytes32 indexed channelId,
        address indexed receiver,
        uint128 amount,
        uint128 cumulative,
        uint64 count,
        bytes32 receiptsRoot
    );
    /// @notice A row of a batch paid nothing.
    /// @param channelId the channel that the row names
    /// @param reason why
    event ClaimSkipped(bytes32 indexed channelId, SkipReason reason);
    /// @notice Money waits for its receiver: a fee, or a transfer that the token refused. See pushPayout.
    /// @param token the ERC-20
    /// @param receiver whose payout it is
    /// @param amount what was added, base units
    /// @param channelId the channel that it comes from, 0 for a batch
    event PayoutCredited(
        address indexed token, address indexed receiver, uint256 amount, bytes32 indexed channelId
    );
    /// @notice Waiting money was sent to its receiver.
    /// @param token the ERC-20
    /// @param receiver who got it
    /// @param amount base units
    event PayoutPushed(address indexed token, address indexed receiver, uint256 amount);
    /// @notice The payer asked for money back.
    /// @param channelId the channel
    /// @param amount base units; MAX_CHANNEL_DEPOSIT means everything, and the channel will close
    /// @param nonce number of the request
    /// @param withdrawableAt block time from which withdraw() works
    event WithdrawalRequested(bytes32 indexed channelId, uint128 amount, uint64 nonce, uint64 withdrawableAt);
    /// @notice The payer called its request off.
    /// @param channelId the channel
    /// @param nonce number of the request
    event WithdrawalCancelled(bytes32 indexed channelId, uint64 nonce);
    /// @notice A partial withdrawal was carried out. A complete one emits ChannelClosed instead.
    /// @param channelId the channel
    /// @param amount what went back to the payer's pooled balance
    event Withdrawn(bytes32 indexed channelId, uint128 amount);
    /// @notice The channel is closed for good.
    /// @param channelId the channel
    /// @param payer who got the rest
    /// @param settled what the receiver got by vouchers in all
    /// @param refund what went back to the payer's pooled balance
    /// @param fee what the receiver got for closing, beside `settled`
    event ChannelClosed(
        bytes32 indexed channelId, address indexed payer, uint128 settled, uint128 refund, uint128 fee
    );

    error ZeroAmount();
    error BadBeneficiary(address beneficiary);
    error DepositMismatch(address token, uint256 expected, uint256 received);
    error PermitNotSigned(address token, address owner);
    error InsufficientBalance(address token, address owner, uint256 balance, uint256 needed);
    error Expired(uint256 deadline, uint256 blockTime);
    error WrongNonce(uint256 given, uint256 expected);
    error BadSignature(address expectedSigner);
    error BadParty(address party);
    error BadRows(uint256 length);
    error TooLittleGas(uint256 left, uint256 needed);
    error WithdrawalDelayOutOfRange(uint64 delay, uint64 minimum, uint64 maximum);
    error DepositTooLarge(uint256 deposit, uint128 maximum);
    error DepositNotIncreased(bytes32 channelId, uint128 current, uint128 requested);
    error UnknownChannel(bytes32 channelId);
    error ChannelIsClosed(bytes32 channelId);
    error WithdrawalAlreadyRequested(bytes32 channelId, uint64 requestedAt);
    error WithdrawalNotRequested(bytes32 channelId);
    error WithdrawalTooEarly(bytes32 channelId, uint64 withdrawableAt, uint256 blockTime);
    error NothingToPush(address token, address receiver);

    // ------------------------------------------------------------------ pooled balances

    /// @notice Takes tokens from the caller (allowance needed) into a pooled balance.
    /// @param token the ERC-20
    /// @param amount base units
    /// @param beneficiary whose pooled balance grows
    function deposit(address token, uint256 amount, address beneficiary) external;

    /// @notice Deposits for `owner` by its EIP-2612 permit. Anybody may submit it. The owner's signature is checked
    /// here too, and a permit works here once. So a stranger can use neither an allowance that exists for another
    /// reason nor a permit that was used here before. Who gives a permit to the token itself and spends its allowance
    /// by `deposit` leaves one use of it here: until its deadline anybody may move a later allowance of that owner
    /// into the owner's own pooled balance. Standard permits only.
    /// @param token the ERC-20
    /// @param owner who signed, and whose pooled balance grows
    /// @param amount base units
    /// @param deadline of the permit
    /// @param signature 65 bytes, or what the smart account `owner` accepts
    function depositWithPermit(
        address token,
        address owner,
        uint256 amount,
        uint256 deadline,
        bytes calldata signature
    ) external;

    /// @notice Deposits for `from` by its EIP-3009 receiveWithAuthorization. Anybody may submit it. The nonce of the
    /// authorization is depositNonce(salt), so an authorization that opens a channel cannot be diverted here.
    /// @param token the ERC-20
    /// @param from who signed, and whose pooled balance grows
    /// @param amount base units
    /// @param validAfter block time after which the authorization is valid, exclusive
    /// @param validBefore block time before which it is valid, exclusive
    /// @param salt any 32 bytes that `from` has not used before
    /// @param signature 65 bytes, or what the smart account `from` accepts
    function depositWithAuthorization(
        address token,
        address from,
        uint256 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 salt,
        bytes calldata signature
    ) external;

    /// @notice Sends the caller's pooled money, at once.
    /// @param token the ERC-20
    /// @param amount base units
    /// @param to who gets it
    function withdrawBalance(address token, uint256 amount, address to) external;

    /// @notice Carries out a signed order over pooled money. Anybody may submit it and gets the fee.
    /// @param order what the owner signed
    /// @param signature the owner's signature: ECDSA first, then ERC-1271
    function withdrawBalanceFor(WithdrawPooled calldata order, bytes calldata signature) external;

    /// @notice Sends what waits for `receiver` to it, and to nobody else. Anybody may call.
    /// @param token the ERC-20
    /// @param receiver who gets it
    function pushPayout(address token, address receiver) external;

    // ------------------------------------------------------------------ channels

    /// @notice Raises the channel's total out of the payer's pooled balance. Opens the channel the first time. By the
    /// payer, or by anybody with the payer's FundChannel signature. Replays fail, since the total only grows.
    /// Possible while a withdrawal is pending, never after closing.
    /// @param channel its terms
    /// @param funded the new total ever put in
    /// @param fee what the payer gives the receiver beside it, out of the same balance
    /// @param deadline block time after which the signature is void
    /// @param signature the payer's; empty when the payer calls
    function fund(
        Channel calldata channel,
        uint128 funded,
        uint128 fee,
        uint64 deadline,
        bytes calldata signature
    ) external;

    /// @notice Opens or tops up a channel out of one EIP-3009 receiveWithAuthorization of the payer over
    /// `amount + fee`, whose nonce is openingNonce(channelId, funded so far, fee). Anybody may submit it.
    /// @param channel its terms
    /// @param amount what the channel gets, base units
    /// @param fee what the receiver gets beside it
    /// @param validAfter block time after which the authorization is valid, exclusive
    /// @param validBefore block time before which it is valid, exclusive
    /// @param signature 65 bytes, or what the smart account `channel.payer` accepts
    function openWithAuthorization(
        Channel calldata channel,
        uint128 amount,
        uint128 fee,
        uint256 validAfter,
        uint256 validBefore,
        bytes calldata signature
    ) external;

    /// @notice Pays each claim what is new in it, at most what the channel holds. Anybody may submit. A row that pays
    /// nothing is skipped with an event and never reverts the batch. Neighbours with the same receiver and token
    /// share one transfer.
    /// @param claims any number of claims on any channels
    function settle(Claim[] calldata claims) external;

    /// @notice Like settle, for rows of one worker: the cheapest form. A row is 192 bytes: payer 20, authorizer 20,
    /// salt 32, cumulative 16, count 8, receiptsRoot 32, r 32, vs 32 (EIP-2098).
    /// @param terms what all rows share
    /// @param rows the rows, one after the other
    function settlePacked(Terms calldata terms, bytes calldata rows) external;

    /// @notice Closes at once: pays the last claim and the fee, and returns the rest to the payer's pooled balance. By
    /// the receiver or operator, or by anybody with the operator's CloseChannel signature over this claim and fee.
    /// @param claim without a fee, signed as a voucher; nothing new in it needs no signature. With a fee, its
    /// signature is the authorizer's over CloseChannel(channel, cumulative, count, receiptsRoot, fee)
    /// @param fee what the receiver gets for closing, at most what is left
    /// @param operatorSignature over CloseChannel; empty when the receiver or operator calls
    function close(Claim calldata claim, uint128 fee, bytes calldata operatorSignature) external;

    /// @notice Starts the withdrawal delay. By the payer, or by anybody with the payer's RequestWithdrawal signature.
    /// @param channel its terms
    /// @param amount base units, or MAX_CHANNEL_DEPOSIT for everything and to close
    /// @param nonce requests that this channel made before
    /// @param deadline block time after which the signature is void
    /// @param signature the payer's; empty when the payer calls
    function requestWithdrawal(
        Channel calldata channel,
        uint128 amount,
        uint64 nonce,
        uint64 deadline,
        bytes calldata signature
    ) external;

    /// @notice Calls the pending request off. By the payer, or by anybody with the payer's CancelWithdrawal signature.
    /// @param channel its terms
    /// @param nonce number of the pending request
    /// @param deadline block time after which the signature is void
    /// @param signature the payer's; empty when the payer calls
    function cancelWithdrawal(
        Channel calldata channel,
        uint64 nonce,
        uint64 deadline,
        bytes calldata signature
    ) external;

    /// @notice After the delay anybody may carry the request out: what was asked for, at most what is left, goes to the
    /// payer's pooled balance. A request for everything closes the channel.
    /// @param channel its terms
    function withdraw(Channel calldata channel) external;

    // ------------------------------------------------------------------ views

    /// @notice What settle(claims) would do now, row by row. A channel may appear twice.
    /// @param claims as for settle
    /// @return amounts what each row would pay
    /// @return reasons why a row would pay nothing
    function previewSettle(Claim[] calldata claims)
        external
        view
        returns (uint128[] memory amounts, SkipReason[] memory reasons);

    /// @notice The pooled balance.
    /// @param token the ERC-20
    /// @param owner whose
    /// @return amount base units
    function balanceOf(address token, address owner) external view returns (uint256 amount);

    /// @notice What waits for pushPayout.
    /// @param token the ERC-20
    /// @param receiver whose
    /// @return amount base units
    function payoutOf(address token, address receiver) external view returns (uint256 amount);

    /// @notice Signed withdrawal orders that this owner's balance has seen: the nonce of the next one.
    /// @param owner whose
    /// @return nonce the next nonce
    function withdrawalNonce(address owner) external view returns (uint64 nonce);

    /// @notice What the chain knows about a channel; all zero for an unknown one.
    /// @param id the channel
    /// @return state see ChannelState
    function getChannel(bytes32 id) external view returns (ChannelState memory state);

    /// @notice The EIP-712 digest of the channel: its id on this chain and escrow.
    /// @param channel its terms
    /// @return id the channel id
    function channelId(Channel calldata channel) external view returns (bytes32 id);

    /// @notice The EIP-3009 nonce for depositWithAuthorization: keccak256(abi.encode(salt)).
    /// @param salt any 32 bytes
    /// @return nonce what the authorization must carry
    function depositNonce(bytes32 salt) external pure returns (bytes32 nonce);

    /// @notice The EIP-3009 nonce for openWithAuthorization: keccak256(abi.encode(channelId, fundedBefore, fee)).
    /// @param id the channel
    /// @param fundedBefore its total before the authorization
    /// @param fee the fee
    /// @return nonce what the authorization must carry
    function openingNonce(bytes32 id, uint128 fundedBefore, uint128 fee) external pure returns (bytes32 nonce);

    /// @notice The separator under which every Piecework object is signed.
    /// @return separator of the domain ("Piecework", "2", chain id, this contract)
    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32 separator);

    /// @notice Below this a worker cannot see a request and get its settlement mined.
    /// @return delay seconds
    function MIN_WITHDRAWAL_DELAY() external view returns (uint64 delay);

    /// @notice A mistyped delay must not lock a payer's money for years.
    /// @return delay seconds
    function MAX_WITHDRAWAL_DELAY() external view returns (uint64 delay);

    /// @notice The most that a channel ever takes; as a requested amount it means everything.
    /// @return amount base units
    function MAX_CHANNEL_DEPOSIT() external view returns (uint128 amount);

    /// @notice The most gas that a payout inside a settlement or closing gets.
    /// @return gas_ gas
    function TRANSFER_GAS() external view returns (uint256 gas_);
}
