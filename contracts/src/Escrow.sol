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
import {Account} from "./libraries/Accounts.sol";
import {CappedTransfer} from "./libraries/CappedTransfer.sol";
import {PackedRows} from "./libraries/PackedRows.sol";
import {Channel, Claim, PieceworkTypes, Terms, WithdrawPooled} from "./libraries/PieceworkTypes.sol";
import {TokenSignatures} from "./libraries/TokenSignatures.sol";

/// @title Escrow (promises and assumptions: IEscrow)
/// @dev Every function has the same order: identify, check, effect, event, interact. Deposits end with one more
/// check, that the tokens arrived. Whatever moves money is nonReentrant.
contract Escrow is IEscrow, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @inheritdoc IEscrow
    uint64 public constant MIN_WITHDRAWAL_DELAY = 1 minutes;
    /// @inheritdoc IEscrow
    uint64 public constant MAX_WITHDRAWAL_DELAY = 30 days;
    /// @inheritdoc IEscrow
    /// @dev Amounts share storage words. 2^96 is 79 billion tokens of 18 decimals.
    uint128 public constant MAX_CHANNEL_DEPOSIT = type(uint96).max;
    /// @inheritdoc IEscrow
    /// @dev Twice what the dearest dollar token needs for a first transfer.
    uint256 public constant TRANSFER_GAS = 100_000;

    /// @dev The first word of a channel. A struct, so that a pointer to it is computed once.
    struct Stored {
        Account account;
    }

    /// @dev The second word. It exists once a withdrawal was asked for.
    struct Withdrawals {
        uint96 withdrawn;
        uint96 requested;
        uint40 requestedAt;
        uint24 requests;
    }

    /// @dev One transfer that a batch of claims adds up to.
    struct Payout {
        address token;
        address receiver;
        uint256 amount;
    }

    mapping(address token => mapping(address owner => uint256)) private _balances;
    mapping(address token => mapping(address receiver => uint256)) private _payouts;
    mapping(bytes32 channelId => Stored) private _accounts;
    mapping(bytes32 channelId => Withdrawals) private _withdrawals;
    mapping(address owner => uint64) private _orders;
    /// @dev The token's permit nonce after the last permit that deposited here.
    mapping(address token => mapping(address owner => uint256)) private _permits;

    constructor() EIP712("Piecework", "2") {}

    // ------------------------------------------------------------------ pooled balances

    /// @inheritdoc IEscrow
    function deposit(address token, uint256 amount, address beneficiary) external nonReentrant {
        _creditDeposit(token, msg.sender, amount, beneficiary);
        _pull(token, msg.sender, amount);
    }

    /// @inheritdoc IEscrow
    function depositWithPermit(
        address token,
        address owner,
        uint256 amount,
        uint256 deadline,
        bytes calldata signature
    ) external nonReentrant {
        if (block.timestamp > deadline) revert Expired(deadline, block.timestamp);
        _creditDeposit(token, owner, amount, owner);
        TokenSignatures.tryPermit(token, owner, amount, deadline, signature);
        uint256 nonces = IERC20Permit(token).nonces(owner);
        // Above zero, and above every permit that deposited here before.
        if (nonces <= _permits[token][owner]) revert PermitNotSigned(token, owner);
        _permits[token][owner] = nonces;
        bytes32 digest = TokenSignatures.lastPermitDigest(token, owner, amount, nonces, deadline);
        if (!_signedByAccount(owner, digest, signature)) revert PermitNotSigned(token, owner);
        _pull(token, owner, amount);
    }

    /// @inheritdoc IEscrow
    function depositWithAuthorization(
        address token,
        address from,
        uint256 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 salt,
        bytes calldata signature
    ) external nonReentrant {
        _creditDeposit(token, from, amount, from);
        _receive(
            token,
            TokenSignatures.Authorization(from, amount, validAfter, validBefore, depositNonce(salt)),
            signature
        );
    }

    /// @inheritdoc IEscrow
    function withdrawBalance(address token, uint256 amount, address to) external nonReentrant {
        _withdrawBalance(token, msg.sender, amount, to, 0);
    }

    /// @inheritdoc IEscrow
    function withdrawBalanceFor(WithdrawPooled calldata order, bytes calldata signature)
        external
        nonReentrant
    {
        if (block.timestamp > order.deadline) revert Expired(order.deadline, block.timestamp);
        uint64 expected = _orders[order.owner];
        if (order.nonce != expected) revert WrongNonce(order.nonce, expected);
        _requirePayer(order.owner, PieceworkTypes.hashWithdrawPooled(order), signature);
        _orders[order.owner] = expected + 1;
        _withdrawBalance(order.token, order.owner, order.amount, order.to, order.fee);
        if (order.fee > 0) IERC20(order.token).safeTransfer(msg.sender, order.fee);
    }

    /// @inheritdoc IEscrow
    function pushPayout(address token, address receiver) external nonReentrant {
        uint256 amount = _payouts[token][receiver];
        if (amount == 0) revert NothingToPush(token, receiver);
        _payouts[token][receiver] = 0;
        emit PayoutPushed(token, receiver, amount);
        IERC20(token).safeTransfer(receiver, amount);
    }

    // ------------------------------------------------------------------ channels

    /// @inheritdoc IEscrow
    function fund(
        Channel calldata channel,
        uint128 funded,
        uint128 fee,
        uint64 deadline,
        bytes calldata signature
    ) external nonReentrant {
        bytes32 id = channelId(channel);
        Account account = _requireNotClosed(id);
        uint96 current = account.funded();
        if (block.timestamp > deadline) revert Expired(deadline, block.timestamp);
        if (funded <= current) revert DepositNotIncreased(id, current, funded);
        if (msg.sender != channel.payer) {
            bytes32 structHash = PieceworkTypes.hashFundChannel(channel, funded, fee, deadline);
            _requirePayer(channel.payer, structHash, signature);
        }
        uint128 added = funded - current;
        _raise(id, channel, account, added, fee);
        _debit(channel.token, channel.payer, uint256(added) + fee);
    }

    /// @inheritdoc IEscrow
    function openWithAuthorization(
        Channel calldata channel,
        uint128 amount,
        uint128 fee,
        uint256 validAfter,
        uint256 validBefore,
        bytes calldata signature
    ) external nonReentrant {
        bytes32 id = channelId(channel);
        Account account = _requireNotClosed(id);
        if (amount == 0) revert ZeroAmount();
        _raise(id, channel, account, amount, fee);
        bytes32 nonce = openingNonce(id, account.funded(), fee);
        _receive(
            channel.token,
            TokenSignatures.Authorization(
                channel.payer, uint256(amount) + fee, validAfter, validBefore, nonce
            ),
            signature
        );
    }

    /// @inheritdoc IEscrow
    function settle(Claim[] calldata claims) external nonReentrant {
        Payout[] memory payouts = new Payout[](claims.length);
        uint256 count = 0;
        for (uint256 i = 0; i < claims.length; ++i) {
            Claim calldata claim = claims[i];
            bytes32 id = channelId(claim.channel);
            Account account = _accounts[id].account;
            (uint96 amount, SkipReason reason) = _judge(id, account, claim);
            if (reason != SkipReason.None) {
                emit ClaimSkipped(id, reason);
                continue;
            }
            _accounts[id].account = account.settle(amount);
            _announce(id, claim, amount);
            count = _append(payouts, count, claim.channel.token, claim.channel.receiver, amount);
        }
        for (uint256 i = 0; i < count; ++i) {
            _pay(payouts[i].token, payouts[i].receiver, payouts[i].amount, 0);
        }
    }

    /// @inheritdoc IEscrow
    /// @dev The twin of settle for many rows of one worker. PackedRows reads and hashes in one buffer, because
    /// abi-encoding each row anew costs more than paying it.
    function settlePacked(Terms calldata terms, bytes calldata rows) external nonReentrant {
        if (rows.length % PackedRows.ROW_BYTES != 0) revert BadRows(rows.length);
        PackedRows.Buffer buffer = PackedRows.prepare(terms, _domainSeparatorV4());
        uint256 due = 0;
        address receiver = terms.receiver;
        uint256 offset = 0;
        while (offset < rows.length) {
            // Neither sum can overflow: there is a row of calldata for each addition, and each adds less than 2^96.
            unchecked {
                due += _settleRow(buffer, receiver, rows, offset);
                offset += PackedRows.ROW_BYTES;
            }
        }
        if (due > 0) _pay(terms.token, receiver, due, 0);
    }

    /// @inheritdoc IEscrow
    function close(Claim calldata claim, uint128 fee, bytes calldata operatorSignature)
        external
        nonReentrant
    {
        Channel calldata channel = claim.channel;
        bytes32 id = channelId(channel);
        Account account = _requireOpen(id);
        bytes32 agreed = _hashTypedDataV4(
            PieceworkTypes.hashCloseChannel(id, claim.cumulative, claim.count, claim.receiptsRoot, fee)
        );
        if (
            msg.sender != channel.operator && msg.sender != channel.receiver
                && !_signed(channel.operator, agreed, operatorSignature)
        ) revert BadSignature(channel.operator);
        bool signed = fee > 0
            ? _signed(channel.authorizer, agreed, claim.signature)
            : claim.cumulative <= account.settled() || _voucherSigned(id, claim);
        if (!signed) revert BadSignature(channel.authorizer);
        uint96 left = _left(id, account);
        uint96 amount = _payable(claim.cumulative, account.settled(), left);
        left -= amount;
        uint96 charged = fee < left ? uint96(fee) : left;
        if (amount > 0) _announce(id, claim, amount);
        _finish(id, channel, account.settle(amount), left - charged, charged);
        if (amount + charged > 0) _pay(channel.token, channel.receiver, uint256(amount) + charged, id);
    }

    /// @inheritdoc IEscrow
    function requestWithdrawal(
        Channel calldata channel,
        uint128 amount,
        uint64 nonce,
        uint64 deadline,
        bytes calldata signature
    ) external nonReentrant {
        bytes32 id = channelId(channel);
        _requireOpen(id);
        Withdrawals storage withdrawals = _withdrawals[id];
        uint24 requests = withdrawals.requests;
        if (block.timestamp > deadline) revert Expired(deadline, block.timestamp);
        if (amount == 0) revert ZeroAmount();
        if (amount > MAX_CHANNEL_DEPOSIT) revert DepositTooLarge(amount, MAX_CHANNEL_DEPOSIT);
        if (withdrawals.requestedAt != 0) revert WithdrawalAlreadyRequested(id, withdrawals.requestedAt);
        if (nonce != requests) revert WrongNonce(nonce, requests);
        if (msg.sender != channel.payer) {
            bytes32 structHash = PieceworkTypes.hashRequestWithdrawal(id, amount, nonce, deadline);
            _requirePayer(channel.payer, structHash, signature);
        }
        withdrawals.requested = uint96(amount);
        withdrawals.requestedAt = uint40(block.timestamp);
        withdrawals.requests = requests + 1;
        emit WithdrawalRequested(id, amount, nonce, uint64(block.timestamp) + channel.withdrawalDelay);
    }

    /// @inheritdoc IEscrow
    function cancelWithdrawal(
        Channel calldata channel,
        uint64 nonce,
        uint64 deadline,
        bytes calldata signature
    ) external nonReentrant {
        bytes32 id = channelId(channel);
        _requireOpen(id);
        Withdrawals storage withdrawals = _requireRequested(id);
        if (block.timestamp > deadline) revert Expired(deadline, block.timestamp);
        uint64 pending = withdrawals.requests - 1;
        if (nonce != pending) revert WrongNonce(nonce, pending);
        if (msg.sender != channel.payer) {
            _requirePayer(channel.payer, PieceworkTypes.hashCancelWithdrawal(id, nonce, deadline), signature);
        }
        withdrawals.requested = 0;
        withdrawals.requestedAt = 0;
        emit WithdrawalCancelled(id, nonce);
    }

    /// @inheritdoc IEscrow
    function withdraw(Channel calldata channel) external nonReentrant {
        bytes32 id = channelId(channel);
        Account account = _requireOpen(id);
        Withdrawals storage withdrawals = _requireRequested(id);
        uint64 withdrawableAt = withdrawals.requestedAt + channel.withdrawalDelay;
        if (block.timestamp < withdrawableAt) revert WithdrawalTooEarly(id, withdrawableAt, block.timestamp);
        uint96 amount = withdrawals.requested;
        uint96 left = _left(id, account);
        if (amount == MAX_CHANNEL_DEPOSIT) {
            _finish(id, channel, account, left, 0);
            return;
        }
        if (amount > left) amount = left;
        withdrawals.withdrawn += amount;
        withdrawals.requested = 0;
        withdrawals.requestedAt = 0;
        if (amount > 0) _accounts[id].account = account.reduce();
        _balances[channel.token][channel.payer] += amount;
        emit Withdrawn(id, amount);
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc IEscrow
    function previewSettle(Claim[] calldata claims)
        external
        view
        returns (uint128[] memory amounts, SkipReason[] memory reasons)
    {
        amounts = new uint128[](claims.length);
        reasons = new SkipReason[](claims.length);
        bytes32[] memory ids = new bytes32[](claims.length);
        for (uint256 i = 0; i < claims.length; ++i) {
            ids[i] = channelId(claims[i].channel);
            Account account = _accounts[ids[i]].account;
            for (uint256 j = 0; j < i; ++j) {
                if (ids[j] == ids[i]) account = account.settle(uint96(amounts[j]));
            }
            (amounts[i], reasons[i]) = _judge(ids[i], account, claims[i]);
        }
    }

    /// @inheritdoc IEscrow
    function balanceOf(address token, address owner) external view returns (uint256) {
        return _balances[token][owner];
    }

    /// @inheritdoc IEscrow
    function payoutOf(address token, address receiver) external view returns (uint256) {
        return _payouts[token][receiver];
    }

    /// @inheritdoc IEscrow
    function withdrawalNonce(address owner) external view returns (uint64) {
        return _orders[owner];
    }

    /// @inheritdoc IEscrow
    function getChannel(bytes32 id) external view returns (ChannelState memory) {
        Account account = _accounts[id].account;
        Withdrawals memory withdrawals = _withdrawals[id];
        return ChannelState({
            funded: account.funded(),
            settled: account.settled(),
            withdrawn: withdrawals.withdrawn,
            // Closing does not pay for erasing a request that no longer matters.
            requested: account.closed() ? 0 : withdrawals.requested,
            requestedAt: account.closed() ? 0 : withdrawals.requestedAt,
            requests: withdrawals.requests,
            closed: account.closed()
        });
    }

    /// @inheritdoc IEscrow
    function channelId(Channel calldata channel) public view returns (bytes32) {
        return _hashTypedDataV4(PieceworkTypes.hashChannel(channel));
    }

    /// @inheritdoc IEscrow
    function depositNonce(bytes32 salt) public pure returns (bytes32) {
        return keccak256(abi.encode(salt));
    }

    /// @inheritdoc IEscrow
    function openingNonce(bytes32 id, uint128 fundedBefore, uint128 fee) public pure returns (bytes32) {
        return keccak256(abi.encode(id, fundedBefore, fee));
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
        // Money sent to the escrow itself would belong to nobody, and dollar tokens refuse transfers to themselves.
        if (
            channel.receiver == address(0) || channel.receiver == address(this)
                || channel.receiver == channel.token
        ) revert BadParty(channel.receiver);
    }

    function _requireNotClosed(bytes32 id) private view returns (Account account) {
        account = _accounts[id].account;
        if (account.closed()) revert ChannelIsClosed(id);
    }

    function _requireOpen(bytes32 id) private view returns (Account account) {
        account = _requireNotClosed(id);
        if (account.funded() == 0) revert UnknownChannel(id);
    }

    function _requireRequested(bytes32 id) private view returns (Withdrawals storage withdrawals) {
        withdrawals = _withdrawals[id];
        if (withdrawals.requestedAt == 0) revert WithdrawalNotRequested(id);
    }

    function _requirePayer(address payer, bytes32 structHash, bytes calldata signature) private view {
        if (!_signedByAccount(payer, _hashTypedDataV4(structHash), signature)) revert BadSignature(payer);
    }

    /// @dev ECDSA first, so that a delegated account (EIP-7702) keeps its key; ERC-1271 for real smart accounts.
    /// An account without code answers every call with nothing, which ERC-1271 does not take for a yes.
    function _signedByAccount(address account, bytes32 digest, bytes calldata signature)
        private
        view
        returns (bool)
    {
        return _signed(account, digest, signature)
            || SignatureChecker.isValidERC1271SignatureNowCalldata(account, digest, signature);
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

    /// @dev What a claim pays out of `account`, or why it pays nothing. Cheapest checks first.
    function _judge(bytes32 id, Account account, Claim calldata claim)
        private
        view
        returns (uint96 amount, SkipReason reason)
    {
        (amount, reason) = _due(id, account, claim.cumulative);
        if (reason == SkipReason.None && !_voucherSigned(id, claim)) return (0, SkipReason.BadSignature);
    }

    /// @dev The part of _judge that needs no signature.
    function _due(bytes32 id, Account account, uint128 cumulative)
        private
        view
        returns (uint96 amount, SkipReason reason)
    {
        if (account.closed()) return (0, SkipReason.Closed);
        amount = _payable(cumulative, account.settled(), _left(id, account));
        if (amount > 0) return (amount, SkipReason.None);
        if (account.funded() == 0) return (0, SkipReason.UnknownChannel);
        return (0, cumulative > account.settled() ? SkipReason.DepositExhausted : SkipReason.NothingNew);
    }

    /// @dev What an open channel still holds. The second word is read only if it matters.
    function _left(bytes32 id, Account account) private view returns (uint96) {
        uint96 left = account.funded() - account.settled();
        return account.reduced() ? left - _withdrawals[id].withdrawn : left;
    }

    /// @dev What a cumulative amount pays out of `left`.
    function _payable(uint128 cumulative, uint96 settled, uint96 left) private pure returns (uint96) {
        if (cumulative <= settled) return 0;
        unchecked {
            uint128 owed = cumulative - settled;
            return owed < left ? uint96(owed) : left;
        }
    }

    // ------------------------------------------------------------------ effects and events

    /// @dev Checks and books a deposit that is about to be pulled.
    function _creditDeposit(address token, address from, uint256 amount, address beneficiary) private {
        if (amount == 0) revert ZeroAmount();
        if (beneficiary == address(0) || beneficiary == address(this)) revert BadBeneficiary(beneficiary);
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

    /// @dev Money that waits for pushPayout.
    function _credit(address token, address receiver, uint256 amount, bytes32 id) private {
        _payouts[token][receiver] += amount;
        emit PayoutCredited(token, receiver, amount, id);
    }

    /// @dev Books `added` > 0 into the channel, and the fee beside it.
    function _raise(bytes32 id, Channel calldata channel, Account account, uint128 added, uint128 fee)
        private
    {
        uint96 current = account.funded();
        uint256 funded = uint256(current) + added;
        if (funded > MAX_CHANNEL_DEPOSIT) revert DepositTooLarge(funded, MAX_CHANNEL_DEPOSIT);
        if (current == 0) _requireTerms(channel);
        _accounts[id].account = account.fund(uint96(added));
        if (current == 0) emit ChannelOpened(id, channel.payer, channel.operator, channel);
        emit ChannelFunded(id, uint128(funded), added, fee);
        if (fee > 0) _credit(channel.token, channel.receiver, fee, id);
    }

    /// @dev Says what a payment of `amount` > 0 commits to.
    function _announce(bytes32 id, Claim calldata claim, uint96 amount) private {
        emit Settled(id, claim.channel.receiver, amount, claim.cumulative, claim.count, claim.receiptsRoot);
    }

    /// @dev Settles one packed row; returns what it pays.
    function _settleRow(PackedRows.Buffer buffer, address receiver, bytes calldata rows, uint256 offset)
        private
        returns (uint256)
    {
        (bytes32 id, uint128 cumulative) = PackedRows.read(buffer, rows, offset);
        Stored storage stored = _accounts[id];
        Account account = stored.account;
        (uint96 amount, SkipReason reason) = _due(id, account, cumulative);
        if (reason == SkipReason.None && !PackedRows.signed(buffer, rows, offset)) {
            reason = SkipReason.BadSignature;
        }
        if (reason != SkipReason.None) {
            emit ClaimSkipped(id, reason);
            return 0;
        }
        stored.account = account.settle(amount);
        PackedRows.announce(buffer, id, receiver, amount);
        return amount;
    }

    /// @dev Closes for good. `refund` and `charged` are all that the channel still holds.
    function _finish(bytes32 id, Channel calldata channel, Account account, uint96 refund, uint96 charged)
        private
    {
        _accounts[id].account = account.close();
        _balances[channel.token][channel.payer] += refund;
        emit ChannelClosed(id, channel.payer, account.settled(), refund, charged);
    }

    /// @dev Sends pooled money; the caller sends the fee.
    function _withdrawBalance(address token, address owner, uint256 amount, address to, uint256 fee) private {
        if (amount == 0) revert ZeroAmount();
        if (to == address(0) || to == address(this)) revert BadBeneficiary(to);
        _debit(token, owner, amount + fee);
        emit BalanceWithdrawn(token, owner, to, amount, fee);
        IERC20(token).safeTransfer(to, amount);
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
    /// its earnings: they wait for pushPayout.
    function _pay(address token, address receiver, uint256 amount, bytes32 id) private {
        (uint256 left, uint256 needed) = (gasleft(), CappedTransfer.needed(TRANSFER_GAS));
        if (left < needed) revert TooLittleGas(left, needed);
        if (!CappedTransfer.tryTransfer(token, receiver, amount, TRANSFER_GAS)) {
            _credit(token, receiver, amount, id);
        }
    }

    /// @dev Takes tokens by allowance.
    function _pull(address token, address from, uint256 amount) private {
        uint256 held = IERC20(token).balanceOf(address(this));
        IERC20(token).safeTransferFrom(from, address(this), amount);
        _requireArrived(token, held, amount);
    }

    /// @dev Takes the tokens of an authorization to this contract.
    function _receive(address token, TokenSignatures.Authorization memory a, bytes calldata signature)
        private
    {
        uint256 held = IERC20(token).balanceOf(address(this));
        TokenSignatures.receiveWithAuthorization(token, a, signature);
        _requireArrived(token, held, a.value);
    }
}
