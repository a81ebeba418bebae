// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice A registration as the operator signs it (EIP-712, domain "Piecework Registry", version "1").
/// @param operator the worker's hot key: the identity that signs offers and receipts
/// @param owner controls the stake and gets it back; may be the cold payout address
/// @param payout where the worker wants its earnings: the receiver that clients should see in its channels
/// @param stake base units of the stake token, taken from whoever submits the registration
/// @param endpoint where the worker listens, at most MAX_ENDPOINT_BYTES bytes
/// @param deadline block time after which the consent is void
struct Registration {
    address operator;
    address owner;
    address payout;
    uint128 stake;
    string endpoint;
    uint64 deadline;
}

/// @notice The submitter's EIP-2612 permit over `registration.stake` for the registry.
struct StakePermit {
    uint256 deadline;
    uint8 v;
    bytes32 r;
    bytes32 s;
}

/// @notice One registered worker.
/// @param registeredAt block time of the registration
/// @param unbondRequestedAt block time of the owner's request to leave, 0 for none
/// @param active bonded with at least the minimum stake: what a client should choose from
struct WorkerView {
    address operator;
    address owner;
    address payout;
    uint128 stake;
    uint64 registeredAt;
    uint64 unbondRequestedAt;
    bool active;
    string endpoint;
}

/// @title WorkerRegistry: who stands behind an operator key, and with how much
/// @notice Immutable: no administrator. Being here proves a stake and an owner, not quality: prices and capabilities
/// are in the operator's signed offers.
///
/// What always holds: the registry's token balance >= sum of the stakes; stake goes to the owner of its worker and
/// to nobody else.
///
/// What a dispute contract will rely on (disputes come with a later registry, whose constructor names the contract
/// that may slash; this one cannot be given a slasher):
/// - a stake stays here for `unbondingDelay` seconds after the request to leave, and until it is withdrawn
///   getWorker() names its owner and isSigner(operator, operator) holds. The window of a dispute, counted from the
///   receipt, must therefore be shorter than that delay;
/// - the stake answers for the operator's own key. A session key can be revoked at any time and dies with its
///   registration, so it authenticates live sessions and is no evidence afterwards.
///
/// Assumption: the stake token is a plain ERC-20 (no fee on transfer, no rebasing).
interface IWorkerRegistry {
    event WorkerRegistered(
        address indexed operator, address indexed owner, address payout, uint128 stake, string endpoint
    );
    event StakeAdded(address indexed operator, address indexed from, uint128 amount, uint128 stake);
    event PayoutSet(address indexed operator, address payout);
    event OwnerSet(address indexed operator, address indexed owner);
    event EndpointSet(address indexed operator, string endpoint);
    event SessionKeyAuthorized(address indexed operator, address indexed key, uint64 validUntil);
    event SessionKeyRevoked(address indexed operator, address indexed key);
    event UnbondRequested(address indexed operator, uint64 withdrawableAt);
    event UnbondCancelled(address indexed operator);
    event StakeWithdrawn(address indexed operator, address indexed owner, uint128 stake);

    error UnbondingDelayTooLong(uint64 delay, uint64 maximum);
    error ZeroAmount();
    error BadParty(address party);
    error Expired(uint64 deadline, uint256 blockTime);
    error OperatorDidNotConsent(address operator);
    error AlreadyRegistered(address operator);
    error UnknownWorker(address operator);
    error StakeTooSmall(uint128 stake, uint128 minimum);
    error StakeMismatch(uint256 expected, uint256 received);
    error BadEndpointLength(uint256 length, uint256 maximum);
    error NotOwner(address caller, address owner);
    error NotOwnerOrOperator(address caller, address owner, address operator);
    error SessionTooLong(uint64 validUntil, uint256 latest);
    error UnbondAlreadyRequested(address operator, uint64 requestedAt);
    error UnbondNotRequested(address operator);
    error StillBonded(address operator, uint64 withdrawableAt, uint256 blockTime);

    // ------------------------------------------------------------------ joining

    /// @notice Registers a worker with the caller's stake (allowance needed). By the operator itself, or by anybody
    /// with the operator's signature over the registration.
    function register(Registration calldata registration, bytes calldata operatorSignature) external;

    /// @notice register() and the caller's permit for the stake in one transaction.
    function registerWithPermit(
        Registration calldata registration,
        bytes calldata operatorSignature,
        StakePermit calldata permit
    ) external;

    /// @notice Adds to a bonded worker's stake from the caller. It belongs to the worker's owner from then on.
    function addStake(address operator, uint128 amount) external;

    // ------------------------------------------------------------------ settings

    /// @notice By the owner.
    function setPayout(address operator, address payout) external;
    /// @notice By the owner.
    function setOwner(address operator, address owner) external;
    /// @notice By the owner or the operator.
    function setEndpoint(address operator, string calldata endpoint) external;
    /// @notice By the operator: `key` may sign for it up to and including block time `validUntil`.
    function authorizeSessionKey(address key, uint64 validUntil) external;
    /// @notice By the operator.
    function revokeSessionKey(address key) external;

    // ------------------------------------------------------------------ leaving

    /// @notice By the owner: the worker is inactive at once, the stake free after unbondingDelay.
    function requestUnbond(address operator) external;
    /// @notice By the owner.
    function cancelUnbond(address operator) external;
    /// @notice By the owner, after the delay: the stake goes to the owner and the registration ends.
    function withdrawStake(address operator) external;

    // ------------------------------------------------------------------ views

    /// @notice Registered, not leaving, stake at least the minimum.
    function isActive(address operator) external view returns (bool);
    /// @notice Whether `key` signs for the registered `operator` now: the operator's own key or a live session key.
    function isSigner(address operator, address key) external view returns (bool);
    function getWorker(address operator) external view returns (WorkerView memory);
    function workerCount() external view returns (uint256);
    /// @notice Workers `offset` to `offset + limit`, fewer at the end. The order changes when a worker leaves (the
    /// last one takes its place), so a page walk pins one block.
    function workers(uint256 offset, uint256 limit) external view returns (WorkerView[] memory);
    function DOMAIN_SEPARATOR() external view returns (bytes32);
    function stakeToken() external view returns (address);
    function minStake() external view returns (uint128);
    function unbondingDelay() external view returns (uint64);
}
