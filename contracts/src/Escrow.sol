// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {ChannelState, IEscrow, SkipReason} from "./interfaces/IEscrow.sol";
import {IERC3009} from "./interfaces/IERC3009.sol";
import {PermitConsent} from "./libraries/PermitConsent.sol";
import {Channel, Claim, PieceworkTypes} from "./libraries/PieceworkTypes.sol";

/// @title Escrow (promises and assumptions: IEscrow)
/// @dev Every function has the same order: identify, check, effect, event, interact. Deposits end with one more
/// check, that the tokens arrived. Whatever moves money is nonReentrant.
contract Escrow is IEscrow, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice Below a minute a worker cannot see the request and get its settlement mined.
    uint64 public constant MIN_WITHDRAWAL_DELAY = 1 minutes;
    /// @notice A mistyped delay must not lock a payer's money for years.
    uint64 public constant MAX_WITHDRAWAL_DELAY = 30 days;
    /// @notice Deposit, settled and count share one storage word. 2^96 is 79 billion tokens of 18 decimals.
    uint128 public constant MAX_CHANNEL_DEPOSIT = type(uint96).max;

    /// @dev One transfer that a batch of claims adds up to.
    struct Payout {
        address token;
        address receiver;
        uint256 amount;
    }

    mapping(address token => mapping(address owner => uint256)) private _balances;
    mapping(bytes32 channelId => ChannelState) private _channels;

    constructor() EIP712("Piecework", "1") {}

    // ------------------------------------------------------------------ pooled balances

    /// @inheritdoc IEscrow
    function deposit(address token, uint256 amount, address beneficiary) external nonReentrant {
        uint256 held = _creditDeposit(token, msg.sender, amount, beneficiary);
        IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
        _requireArrived(token, held, amount);
    }

    /// @inheritdoc IEscrow
    function depositWithPermit(
        address token,
        address owner,
        uint256 amount,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external nonReentrant {
        if (block.timestamp > deadline) revert Expired(deadline, block.timestamp);
        uint256 held = _creditDeposit(token, owner, amount, owner);
        // Fails when somebody submitted the same permit first: then the allowance is there already.
        try IERC20Permit(token).permit(owner, address(this), amount, deadline, v, r, s) {} catch {}
        if (!PermitConsent.isLastUsed(token, PermitConsent.Permit(owner, amount, deadline, v, r, s))) {
            revert PermitNotSigned(token, owner);
        }
        IERC20(token).safeTransferFrom(owner, address(this), amount);
        _requireArrived(token, held, amount);
    }

    /// @inheritdoc IEscrow
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
    ) external nonReentrant {
        uint256 held = _creditDeposit(token, from, amount, from);
        IERC3009(token)
            .receiveWithAuthorization(from, address(this), amount, validAfter, validBefore, nonce, v, r, s);
        _requireArrived(token, held, amount);
    }

    /// @inheritdoc IEscrow
    function withdrawBalance(address token, uint256 amount, address to) external nonReentrant {
        if (amount == 0) revert ZeroAmount();
        if (to == address(0) || to == address(this)) revert BadBeneficiary(to);
        _debit(token, msg.sender, amount);
        emit BalanceWithdrawn(token, msg.sender, to, amount);
        IERC20(token).safeTransfer(to, amount);
    }

    // ------------------------------------------------------------------ channels

    /// @inheritdoc IEscrow
    function fund(Channel calldata channel, uint128 newDeposit, uint64 deadline, bytes calldata signature)
        external
        nonReentrant
    {
        bytes32 id = channelId(channel);
        ChannelState storage state = _channels[id];
        uint96 current = state.deposit;
        if (block.timestamp > deadline) revert Expired(deadline, block.timestamp);
        if (state.closed) revert ChannelIsClosed(id);
        if (newDeposit <= current) revert DepositNotIncreased(id, current, newDeposit);
        if (newDeposit > MAX_CHANNEL_DEPOSIT) revert DepositTooLarge(newDeposit, MAX_CHANNEL_DEPOSIT);
        if (current == 0) _requireTerms(channel);
        if (msg.sender != channel.payer) {
            bytes32 structHash = PieceworkTypes.hashFundChannel(channel, newDeposit, deadline);
            _requirePayer(channel.payer, structHash, signature);
        }
        uint128 added = newDeposit - current;
        _debit(channel.token, channel.payer, added);
        state.deposit = uint96(newDeposit);
        if (current == 0) emit ChannelOpened(id, channel.payer, channel.operator, channel);
        emit ChannelFunded(id, newDeposit, added);
    }

    /// @inheritdoc IEscrow
    function settle(Claim[] calldata claims) external nonReentrant {
        Payout[] memory payouts = new Payout[](claims.length);
        uint256 count = 0;
        for (uint256 i = 0; i < claims.length; ++i) {
            Claim calldata claim = claims[i];
            bytes32 id = channelId(claim.channel);
            ChannelState storage state = _channels[id];
            (uint96 amount, SkipReason reason) = _judge(state, id, claim, state.settled);
            if (reason != SkipReason.None) {
                emit ClaimSkipped(id, reason);
                continue;
            }
            _record(state, id, claim, amount);
            count = _append(payouts, count, claim.channel.token, claim.channel.receiver, amount);
        }
        for (uint256 i = 0; i < count; ++i) {
            _pay(payouts[i].token, payouts[i].receiver, payouts[i].amount);
        }
    }

    /// @inheritdoc IEscrow
    function close(Claim calldata claim, bytes calldata operatorSignature) external nonReentrant {
        Channel calldata channel = claim.channel;
        bytes32 id = channelId(channel);
        ChannelState storage state = _requireOpen(id);
        (uint96 deposited, uint96 settled) = (state.deposit, state.settled);
        if (claim.cumulative < settled) revert CumulativeBelowSettled(id, settled, claim.cumulative);
        if (msg.sender != channel.operator && msg.sender != channel.receiver) {
            bytes32 structHash =
                PieceworkTypes.hashCloseChannel(id, claim.cumulative, claim.count, claim.receiptsRoot);
            if (!_signed(channel.operator, _hashTypedDataV4(structHash), operatorSignature)) {
                revert BadSignature(channel.operator);
            }
        }
        uint96 amount = 0;
        if (claim.cumulative > settled) {
            if (!_voucherSigned(id, claim)) revert BadSignature(channel.authorizer);
            amount = _payable(claim.cumulative, deposited, settled);
        }
        if (amount > 0) _record(state, id, claim, amount);
        _finish(state, id, channel);
        if (amount > 0) _pay(channel.token, channel.receiver, amount);
    }

    /// @inheritdoc IEscrow
    function requestWithdrawal(Channel calldata channel, uint64 deadline, bytes calldata signature)
        external
        nonReentrant
    {
        bytes32 id = channelId(channel);
        ChannelState storage state = _requireOpen(id);
        if (block.timestamp > deadline) revert Expired(deadline, block.timestamp);
        // A second request must not restart the clock: its signature may be replayed by anybody.
        if (state.withdrawalRequestedAt != 0) {
            revert WithdrawalAlreadyRequested(id, state.withdrawalRequestedAt);
        }
        if (msg.sender != channel.payer) {
            _requirePayer(channel.payer, PieceworkTypes.hashRequestWithdrawal(id, deadline), signature);
        }
        state.withdrawalRequestedAt = uint64(block.timestamp);
        emit WithdrawalRequested(id, uint64(block.timestamp) + channel.withdrawalDelay);
    }

    /// @inheritdoc IEscrow
    function withdraw(Channel calldata channel) external nonReentrant {
        bytes32 id = channelId(channel);
        ChannelState storage state = _requireOpen(id);
        uint64 requestedAt = state.withdrawalRequestedAt;
        if (requestedAt == 0) revert WithdrawalNotRequested(id);
        uint64 withdrawableAt = requestedAt + channel.withdrawalDelay;
        if (block.timestamp < withdrawableAt) revert WithdrawalTooEarly(id, withdrawableAt, block.timestamp);
        _finish(state, id, channel);
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc IEscrow
    function previewSettle(Claim[] calldata claims)
        external
        view
        returns (uint128[] memory payable_, SkipReason[] memory reasons)
    {
        payable_ = new uint128[](claims.length);
        reasons = new SkipReason[](claims.length);
        bytes32[] memory ids = new bytes32[](claims.length);
        for (uint256 i = 0; i < claims.length; ++i) {
            ids[i] = channelId(claims[i].channel);
            ChannelState storage state = _channels[ids[i]];
            uint96 settled = state.settled;
            for (uint256 j = 0; j < i; ++j) {
                if (ids[j] == ids[i]) settled += uint96(payable_[j]);
            }
            (payable_[i], reasons[i]) = _judge(state, ids[i], claims[i], settled);
        }
    }

    /// @inheritdoc IEscrow
    function balanceOf(address token, address owner) external view returns (uint256) {
        return _balances[token][owner];
    }

    /// @inheritdoc IEscrow
    function getChannel(bytes32 id) external view returns (ChannelState memory) {
        return _channels[id];
    }

    /// @inheritdoc IEscrow
    function channelId(Channel calldata channel) public view returns (bytes32) {
        return _hashTypedDataV4(PieceworkTypes.hashChannel(channel));
    }

    /// @inheritdoc IEscrow
    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    // ------------------------------------------------------------------ checks

    /// @dev Terms are checked when the channel opens; afterwards the id vouches for them.
    function _requireTerms(Channel calldata channel) private view {
        if (channel.withdrawalDelay < MIN_WITHDRAWAL_DELAY || channel.withdrawalDelay > MAX_WITHDRAWAL_DELAY)
        {
            revert WithdrawalDelayOutOfRange(
                channel.withdrawalDelay, MIN_WITHDRAWAL_DELAY, MAX_WITHDRAWAL_DELAY
            );
        }
        if (channel.authorizer == address(0)) revert BadParty(channel.authorizer);
        if (channel.operator == address(0)) revert BadParty(channel.operator);
        // Money sent to the escrow itself would belong to nobody.
        if (channel.receiver == address(0) || channel.receiver == address(this)) {
            revert BadParty(channel.receiver);
        }
    }

    function _requireOpen(bytes32 id) private view returns (ChannelState storage state) {
        state = _channels[id];
        if (state.closed) revert ChannelIsClosed(id);
        if (state.deposit == 0) revert UnknownChannel(id);
    }

    /// @dev ECDSA first, so that a delegated account (EIP-7702) keeps its key; ERC-1271 for real smart accounts.
    function _requirePayer(address payer, bytes32 structHash, bytes calldata signature) private view {
        bytes32 digest = _hashTypedDataV4(structHash);
        if (_signed(payer, digest, signature)) return;
        if (
            payer.code.length > 0
                && SignatureChecker.isValidERC1271SignatureNowCalldata(payer, digest, signature)
        ) return;
        revert BadSignature(payer);
    }

    /// @dev Plain ECDSA: 65 bytes, low s. Never asks the signer's code.
    function _signed(address signer, bytes32 digest, bytes calldata signature) private pure returns (bool) {
        (address recovered, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        return failure == ECDSA.RecoverError.NoError && recovered == signer;
    }

    function _voucherSigned(bytes32 id, Claim calldata claim) private view returns (bool) {
        bytes32 structHash = PieceworkTypes.hashVoucher(id, claim.cumulative, claim.count, claim.receiptsRoot);
        return _signed(claim.channel.authorizer, _hashTypedDataV4(structHash), claim.signature);
    }

    /// @dev What a claim pays when `settled` is paid already, or why it pays nothing. Cheapest checks first.
    /// A closed channel has deposit == settled, so only the refusals have to look at `closed`.
    function _judge(ChannelState storage state, bytes32 id, Claim calldata claim, uint96 settled)
        private
        view
        returns (uint96 amount, SkipReason reason)
    {
        uint96 deposited = state.deposit;
        if (claim.cumulative <= settled || settled == deposited) {
            if (state.closed) return (0, SkipReason.Closed);
            if (deposited == 0) return (0, SkipReason.UnknownChannel);
            return (0, claim.cumulative <= settled ? SkipReason.NothingNew : SkipReason.DepositExhausted);
        }
        if (!_voucherSigned(id, claim)) return (0, SkipReason.BadSignature);
        return (_payable(claim.cumulative, deposited, settled), SkipReason.None);
    }

    /// @dev Needs cumulative >= settled. At most the deposit is ever paid.
    function _payable(uint128 cumulative, uint96 deposited, uint96 settled) private pure returns (uint96) {
        return cumulative < deposited ? uint96(cumulative) - settled : deposited - settled;
    }

    // ------------------------------------------------------------------ effects and events

    /// @dev Checks and books a deposit that is about to be pulled; returns what the escrow holds before it.
    function _creditDeposit(address token, address from, uint256 amount, address beneficiary)
        private
        returns (uint256 held)
    {
        if (amount == 0) revert ZeroAmount();
        if (beneficiary == address(0) || beneficiary == address(this)) revert BadBeneficiary(beneficiary);
        held = IERC20(token).balanceOf(address(this));
        _balances[token][beneficiary] += amount;
        emit Deposited(token, beneficiary, from, amount);
    }

    function _requireArrived(address token, uint256 held, uint256 amount) private view {
        uint256 nowHeld = IERC20(token).balanceOf(address(this));
        uint256 received = nowHeld > held ? nowHeld - held : 0;
        if (received != amount) revert DepositMismatch(token, amount, received);
    }

    function _debit(address token, address owner, uint256 amount) private {
        uint256 balance = _balances[token][owner];
        if (balance < amount) revert InsufficientBalance(token, owner, balance, amount);
        unchecked {
            _balances[token][owner] = balance - amount;
        }
    }

    /// @dev Books a payment of `amount` > 0 and announces what it commits to.
    function _record(ChannelState storage state, bytes32 id, Claim calldata claim, uint96 amount) private {
        (uint96 settled, uint64 count) = (state.settled + amount, state.count);
        if (claim.count > count) count = claim.count;
        (state.settled, state.count) = (settled, count);
        emit Settled(id, claim.channel.receiver, amount, claim.cumulative, claim.count, claim.receiptsRoot);
    }

    /// @dev Closes for good and returns the rest to the payer's pooled balance.
    function _finish(ChannelState storage state, bytes32 id, Channel calldata channel) private {
        uint96 settled = state.settled;
        uint96 refund = state.deposit - settled;
        state.deposit = settled;
        state.closed = true;
        _balances[channel.token][channel.payer] += refund;
        emit ChannelClosed(id, channel.payer, settled, refund);
    }

    /// @dev Adds to the last payout if it goes to the same receiver in the same token, else starts a new one.
    function _append(Payout[] memory payouts, uint256 count, address token, address receiver, uint256 amount)
        private
        pure
        returns (uint256)
    {
        if (count > 0) {
            Payout memory last = payouts[count - 1];
            if (last.receiver == receiver && last.token == token) {
                last.amount += amount;
                return count;
            }
        }
        payouts[count] = Payout(token, receiver, amount);
        return count + 1;
    }

    // ------------------------------------------------------------------ interactions

    /// @dev A receiver that the token refuses (a block list, say) must not stop the rest of a batch, and must not lose
    /// its earnings: they wait in its pooled balance, from where it can send them elsewhere.
    function _pay(address token, address receiver, uint256 amount) private {
        if (IERC20(token).trySafeTransfer(receiver, amount)) return;
        _balances[token][receiver] += amount;
        emit PayoutCredited(token, receiver, amount);
    }
}
