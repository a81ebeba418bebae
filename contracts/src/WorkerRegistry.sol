// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {IWorkerRegistry, Registration, WorkerView} from "./interfaces/IWorkerRegistry.sol";
import {RegistrationTypes} from "./libraries/RegistrationTypes.sol";
import {TokenSignatures} from "./libraries/TokenSignatures.sol";

/// @title WorkerRegistry (promises and assumptions: IWorkerRegistry)
/// @dev The same order inside every function as in Escrow: identify, check, effect, event, interact.
contract WorkerRegistry is IWorkerRegistry, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @inheritdoc IWorkerRegistry
    uint256 public constant MAX_ENDPOINT_BYTES = 256;
    /// @inheritdoc IWorkerRegistry
    uint64 public constant MAX_SESSION_SECONDS = 30 days;
    /// @inheritdoc IWorkerRegistry
    uint64 public constant MIN_UNBONDING_DELAY = 7 days;
    /// @inheritdoc IWorkerRegistry
    uint64 public constant MAX_UNBONDING_DELAY = 180 days;
    /// @inheritdoc IWorkerRegistry
    uint64 public constant MAX_FREEZE_SECONDS = 30 days;

    /// @dev `id` numbers registrations from 1, so that session keys of an earlier registration stay dead.
    struct Worker {
        address owner;
        uint64 registeredAt;
        address payout;
        uint64 unbondRequestedAt;
        uint128 stake;
        uint64 id;
        uint64 index;
        address offeredOwner;
        uint64 frozenUntil;
        bool suspended;
        string endpoint;
    }

    IERC20 private immutable _stakeToken;
    /// @inheritdoc IWorkerRegistry
    uint128 public immutable minStake;
    /// @inheritdoc IWorkerRegistry
    uint64 public immutable unbondingDelay;
    /// @inheritdoc IWorkerRegistry
    address public immutable slasher;

    mapping(address operator => Worker) private _workers;
    mapping(uint64 registrationId => mapping(address key => uint64 validUntil)) private _sessions;
    mapping(address operator => uint64 registrations) private _registrations;
    mapping(address payee => uint256) private _rewards;
    address[] private _operators;
    uint64 private _lastId;
    /// @inheritdoc IWorkerRegistry
    uint256 public forfeited;

    /// @notice The deployer becomes the slasher.
    /// @param stakeToken_ the token that is staked
    /// @param minStake_ the least stake of an active worker, base units
    /// @param unbondingDelay_ how long a stake stays after the request to leave, seconds
    constructor(IERC20 stakeToken_, uint128 minStake_, uint64 unbondingDelay_)
        EIP712("Piecework Registry", "2")
    {
        if (address(stakeToken_).code.length == 0) revert BadParty(address(stakeToken_));
        if (minStake_ == 0) revert ZeroAmount();
        if (unbondingDelay_ < MIN_UNBONDING_DELAY || unbondingDelay_ > MAX_UNBONDING_DELAY) {
            revert UnbondingDelayOutOfRange(unbondingDelay_, MIN_UNBONDING_DELAY, MAX_UNBONDING_DELAY);
        }
        slasher = msg.sender;
        _stakeToken = stakeToken_;
        minStake = minStake_;
        unbondingDelay = unbondingDelay_;
    }

    // ------------------------------------------------------------------ joining

    /// @inheritdoc IWorkerRegistry
    function register(Registration calldata registration, bytes calldata operatorSignature)
        external
        nonReentrant
    {
        _register(registration, operatorSignature);
    }

    /// @inheritdoc IWorkerRegistry
    function registerWithPermit(
        Registration calldata registration,
        bytes calldata operatorSignature,
        uint256 permitDeadline,
        bytes calldata permitSignature
    ) external nonReentrant {
        // Only the caller's own tokens are taken, so a failed permit can at most make the transfer fail.
        TokenSignatures.tryPermit(
            address(_stakeToken), msg.sender, registration.stake, permitDeadline, permitSignature
        );
        _register(registration, operatorSignature);
    }

    /// @inheritdoc IWorkerRegistry
    function addStake(address operator, uint128 amount) external nonReentrant {
        Worker storage worker = _find(operator);
        if (amount == 0) revert ZeroAmount();
        if (worker.unbondRequestedAt != 0) {
            revert UnbondAlreadyRequested(operator, worker.unbondRequestedAt);
        }
        worker.stake += amount;
        emit StakeAdded(operator, msg.sender, amount, worker.stake);
        _pull(amount);
    }

    // ------------------------------------------------------------------ settings

    /// @inheritdoc IWorkerRegistry
    function setPayout(address operator, address payout) external {
        Worker storage worker = _findOwned(operator);
        if (payout == address(0)) revert BadParty(payout);
        worker.payout = payout;
        emit PayoutSet(operator, payout);
    }

    /// @inheritdoc IWorkerRegistry
    function offerOwner(address operator, address owner) external {
        Worker storage worker = _findOwned(operator);
        worker.offeredOwner = owner;
        emit OwnerOffered(operator, owner);
    }

    /// @inheritdoc IWorkerRegistry
    function acceptOwner(address operator) external {
        Worker storage worker = _find(operator);
        if (msg.sender != worker.offeredOwner) revert NotOfferedOwner(msg.sender, worker.offeredOwner);
        worker.owner = msg.sender;
        worker.offeredOwner = address(0);
        emit OwnerSet(operator, msg.sender);
    }

    /// @inheritdoc IWorkerRegistry
    function setEndpoint(address operator, string calldata endpoint) external {
        Worker storage worker = _findControlled(operator);
        _requireEndpoint(endpoint);
        worker.endpoint = endpoint;
        emit EndpointSet(operator, endpoint);
    }

    /// @inheritdoc IWorkerRegistry
    function authorizeSessionKey(address key, uint64 validUntil) external {
        Worker storage worker = _find(msg.sender);
        if (key == address(0)) revert BadParty(key);
        if (validUntil < block.timestamp) revert Expired(validUntil, block.timestamp);
        uint256 latest = block.timestamp + MAX_SESSION_SECONDS;
        if (validUntil > latest) revert SessionTooLong(validUntil, latest);
        _sessions[worker.id][key] = validUntil;
        emit SessionKeyAuthorized(msg.sender, key, validUntil);
    }

    /// @inheritdoc IWorkerRegistry
    function revokeSessionKey(address operator, address key) external {
        Worker storage worker = _findControlled(operator);
        delete _sessions[worker.id][key];
        emit SessionKeyRevoked(operator, key);
    }

    // ------------------------------------------------------------------ leaving

    /// @inheritdoc IWorkerRegistry
    function requestUnbond(address operator) external {
        Worker storage worker = _findOwned(operator);
        if (worker.unbondRequestedAt != 0) {
            revert UnbondAlreadyRequested(operator, worker.unbondRequestedAt);
        }
        worker.unbondRequestedAt = uint64(block.timestamp);
        emit UnbondRequested(operator, uint64(block.timestamp) + unbondingDelay);
    }

    /// @inheritdoc IWorkerRegistry
    function cancelUnbond(address operator) external {
        Worker storage worker = _findOwned(operator);
        if (worker.unbondRequestedAt == 0) revert UnbondNotRequested(operator);
        worker.unbondRequestedAt = 0;
        emit UnbondCancelled(operator);
    }

    /// @inheritdoc IWorkerRegistry
    function withdrawStake(address operator) external nonReentrant {
        Worker storage worker = _findOwned(operator);
        uint64 requestedAt = worker.unbondRequestedAt;
        if (requestedAt == 0) revert UnbondNotRequested(operator);
        uint64 withdrawableAt = requestedAt + unbondingDelay;
        if (block.timestamp < withdrawableAt) revert StillBonded(operator, withdrawableAt, block.timestamp);
        uint64 frozenUntil = worker.frozenUntil;
        if (block.timestamp < frozenUntil) revert StillFrozen(operator, frozenUntil, block.timestamp);
        (address owner, uint128 stake) = (worker.owner, worker.stake);
        _remove(operator, worker.index);
        emit StakeWithdrawn(operator, owner, stake);
        _stakeToken.safeTransfer(owner, stake);
    }

    // ------------------------------------------------------------------ slashing

    /// @inheritdoc IWorkerRegistry
    function freeze(address operator, uint64 until) external {
        Worker storage worker = _findForSlasher(operator);
        uint256 latest = block.timestamp + MAX_FREEZE_SECONDS;
        if (until > latest) revert FreezeTooLong(until, latest);
        // A second dispute must not end the freeze of the first one.
        if (until <= worker.frozenUntil) return;
        worker.frozenUntil = until;
        emit StakeFrozen(operator, until);
    }

    /// @inheritdoc IWorkerRegistry
    function suspend(address operator, bool suspended) external {
        Worker storage worker = _findForSlasher(operator);
        if (worker.suspended == suspended) return;
        worker.suspended = suspended;
        emit WorkerSuspended(operator, suspended);
    }

    /// @inheritdoc IWorkerRegistry
    function slash(address operator, uint128 amount, address payee) external {
        Worker storage worker = _findForSlasher(operator);
        if (amount == 0) revert ZeroAmount();
        if (amount > worker.stake) revert StakeTooSmall(worker.stake, amount);
        // A reward that is sent to the registry itself would count twice.
        if (payee == address(this)) revert BadParty(payee);
        worker.stake -= amount;
        if (payee == address(0)) forfeited += amount;
        else _rewards[payee] += amount;
        emit StakeSlashed(operator, payee, amount, worker.stake);
    }

    /// @inheritdoc IWorkerRegistry
    function pushReward(address payee) external nonReentrant {
        uint256 amount = _rewards[payee];
        if (amount == 0) revert NothingToPush(payee);
        _rewards[payee] = 0;
        emit RewardPushed(payee, amount);
        _stakeToken.safeTransfer(payee, amount);
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc IWorkerRegistry
    function isActive(address operator) public view returns (bool) {
        Worker storage worker = _workers[operator];
        return
            worker.id != 0 && worker.unbondRequestedAt == 0 && worker.stake >= minStake && !worker.suspended;
    }

    /// @inheritdoc IWorkerRegistry
    function isSigner(address operator, address key) external view returns (bool) {
        uint64 id = _workers[operator].id;
        if (id == 0) return false;
        return key == operator || block.timestamp <= _sessions[id][key];
    }

    /// @inheritdoc IWorkerRegistry
    function getWorker(address operator) public view returns (WorkerView memory) {
        Worker storage worker = _find(operator);
        return WorkerView({
            operator: operator,
            owner: worker.owner,
            offeredOwner: worker.offeredOwner,
            payout: worker.payout,
            stake: worker.stake,
            id: worker.id,
            nonce: _registrations[operator] - 1,
            registeredAt: worker.registeredAt,
            unbondRequestedAt: worker.unbondRequestedAt,
            frozenUntil: worker.frozenUntil,
            active: isActive(operator),
            endpoint: worker.endpoint
        });
    }

    /// @inheritdoc IWorkerRegistry
    function registrationNonce(address operator) external view returns (uint64) {
        return _registrations[operator];
    }

    /// @inheritdoc IWorkerRegistry
    function rewardOf(address payee) external view returns (uint256) {
        return _rewards[payee];
    }

    /// @inheritdoc IWorkerRegistry
    function workerCount() external view returns (uint256) {
        return _operators.length;
    }

    /// @inheritdoc IWorkerRegistry
    function workers(uint256 offset, uint256 limit) external view returns (WorkerView[] memory page) {
        uint256 total = _operators.length;
        if (offset >= total) return page;
        uint256 size = limit < total - offset ? limit : total - offset;
        page = new WorkerView[](size);
        for (uint256 i = 0; i < size; ++i) {
            page[i] = getWorker(_operators[offset + i]);
        }
    }

    /// @inheritdoc IWorkerRegistry
    function stakeToken() external view returns (address) {
        return address(_stakeToken);
    }

    /// @inheritdoc IWorkerRegistry
    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    // ------------------------------------------------------------------ checks

    function _find(address operator) private view returns (Worker storage worker) {
        worker = _workers[operator];
        if (worker.id == 0) revert UnknownWorker(operator);
    }

    function _findOwned(address operator) private view returns (Worker storage worker) {
        worker = _find(operator);
        if (msg.sender != worker.owner) revert NotOwner(msg.sender, worker.owner);
    }

    function _findControlled(address operator) private view returns (Worker storage worker) {
        worker = _find(operator);
        if (msg.sender != worker.owner && msg.sender != operator) {
            revert NotOwnerOrOperator(msg.sender, worker.owner, operator);
        }
    }

    function _findForSlasher(address operator) private view returns (Worker storage worker) {
        if (msg.sender != slasher) revert NotSlasher(msg.sender, slasher);
        worker = _find(operator);
    }

    function _requireEndpoint(string calldata endpoint) private pure {
        uint256 length = bytes(endpoint).length;
        if (length == 0 || length > MAX_ENDPOINT_BYTES) revert BadEndpointLength(length, MAX_ENDPOINT_BYTES);
    }

    /// @dev A stake that is returned to the registry itself would belong to nobody.
    function _requireOwnerAddress(address owner) private view {
        if (owner == address(0) || owner == address(this)) revert BadParty(owner);
    }

    function _requireConsent(Registration calldata r, bytes calldata signature) private view {
        if (block.timestamp > r.deadline) revert Expired(r.deadline, block.timestamp);
        if (r.nonce != _registrations[r.operator]) {
            revert WrongNonce(r.nonce, _registrations[r.operator]);
        }
        if (msg.sender == r.operator) return;
        bytes32 digest = _hashTypedDataV4(RegistrationTypes.hashRegistration(r));
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (failure != ECDSA.RecoverError.NoError || signer != r.operator) {
            revert OperatorDidNotConsent(r.operator);
        }
    }

    // ------------------------------------------------------------------ effects and interactions

    function _register(Registration calldata r, bytes calldata signature) private {
        Worker storage worker = _workers[r.operator];
        if (worker.id != 0) revert AlreadyRegistered(r.operator);
        if (r.operator == address(0)) revert BadParty(r.operator);
        if (r.payout == address(0)) revert BadParty(r.payout);
        _requireOwnerAddress(r.owner);
        if (r.stake < minStake) revert StakeTooSmall(r.stake, minStake);
        _requireEndpoint(r.endpoint);
        _requireConsent(r, signature);
        worker.owner = r.owner;
        worker.registeredAt = uint64(block.timestamp);
        worker.payout = r.payout;
        worker.stake = r.stake;
        worker.id = ++_lastId;
        _registrations[r.operator] = r.nonce + 1;
        worker.index = uint64(_operators.length);
        worker.endpoint = r.endpoint;
        _operators.push(r.operator);
        emit WorkerRegistered(r.operator, r.owner, r.payout, r.stake, r.endpoint, worker.id);
        _pull(r.stake);
    }

    /// @dev The last worker takes the place of the one that leaves.
    function _remove(address operator, uint64 index) private {
        address last = _operators[_operators.length - 1];
        _operators[index] = last;
        _workers[last].index = index;
        _operators.pop();
        delete _workers[operator];
    }

    function _pull(uint128 amount) private {
        uint256 held = _stakeToken.balanceOf(address(this));
        _stakeToken.safeTransferFrom(msg.sender, address(this), amount);
        uint256 nowHeld = _stakeToken.balanceOf(address(this));
        uint256 received = nowHeld > held ? nowHeld - held : 0;
        if (received != amount) revert StakeMismatch(amount, received);
    }
}
