// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

/// @notice A registration as the operator signs it (EIP-712, domain "Piecework Registry", version "2").
/// @param operator the worker's hot key: the identity that signs offers and receipts
/// @param owner controls the stake and gets it back; must be able to send transactions
/// @param payout where the worker wants its earnings: the receiver that clients should see in its channels
/// @param stake base units of the stake token, taken from the submitter
/// @param endpoint where the worker listens, at most MAX_ENDPOINT_BYTES bytes
/// @param nonce registrations that this operator had before, so that a consent works once
/// @param deadline block time after which the consent is void
struct Registration {
    address operator;
    address owner;
    address payout;
    uint128 stake;
    string endpoint;
    uint64 nonce;
    uint64 deadline;
}

/// @notice One registered worker.
/// @param operator its hot key
/// @param owner who controls the stake
/// @param offeredOwner who may take the ownership over, zero for nobody
/// @param payout where it wants its earnings
/// @param stake base units of the stake token
/// @param id number of this registration, from 1 on; never given twice
/// @param nonce registrations that this operator had before this one
/// @param registeredAt block time of the registration
/// @param unbondRequestedAt block time of the owner's request to leave, 0 for none
/// @param frozenUntil block time before which the slasher lets no stake out, 0 for never frozen
/// @param active bonded with at least the minimum stake, not suspended: what a client should choose from
/// @param endpoint where it listens
struct WorkerView {
    address operator;
    address owner;
    address offeredOwner;
    address payout;
    uint128 stake;
    uint64 id;
    uint64 nonce;
    uint64 registeredAt;
    uint64 unbondRequestedAt;
    uint64 frozenUntil;
    bool active;
    string endpoint;
}

/// @title WorkerRegistry: who stands behind an operator key, and with how much
/// @notice Immutable: no administrator. Being here proves a stake and an owner, not quality: prices and capabilities
/// are in the operator's signed offers.
///
/// What always holds (contracts/PROPERTIES.md numbers it): the registry's token balance >= sum of the stakes + sum of
/// waiting rewards + what was forfeited. A stake goes to the owner of its worker, or where the slasher says.
///
/// The slasher is the account that deployed the registry. Deployed through the canonical CREATE2 factory that is the
/// factory, which only ever deploys: then no stake can be frozen or slashed. A dispute contract that deploys its own
/// registry becomes its slasher. It may rely on this:
/// - a stake stays here for `unbondingDelay` seconds after the request to leave, and longer while it is frozen. So the
///   window of a dispute must be shorter than that delay;
/// - a slash cannot be stopped by a block list of the token, since it only moves numbers;
/// - the stake answers for the operator's own key. A session key can be revoked at any time and dies with its
///   registration, so it authenticates live sessions and is no evidence afterwards.
///
/// Assumption: the stake token is a plain ERC-20 (no fee on transfer, no rebasing).
interface IWorkerRegistry {
    /// @notice A worker joined.
    /// @param operator its hot key
    /// @param owner who controls the stake
    /// @param payout where it wants its earnings
    /// @param stake base units
    /// @param endpoint where it listens
    /// @param id number of the registration
    event WorkerRegistered(
        address indexed operator,
        address indexed owner,
        address payout,
        uint128 stake,
        string endpoint,
        uint64 id
    );
    /// @notice A stake grew.
    /// @param operator the worker
    /// @param from who paid
    /// @param amount what was added
    /// @param stake the new stake
    event StakeAdded(address indexed operator, address indexed from, uint128 amount, uint128 stake);
    /// @notice The payout address changed.
    /// @param operator the worker
    /// @param payout the new address
    event PayoutSet(address indexed operator, address payout);
    /// @notice The owner offered the ownership to somebody, or to nobody any more.
    /// @param operator the worker
    /// @param offered who may accept, zero for nobody
    event OwnerOffered(address indexed operator, address indexed offered);
    /// @notice The ownership changed hands.
    /// @param operator the worker
    /// @param owner the new owner
    event OwnerSet(address indexed operator, address indexed owner);
    /// @notice The endpoint changed.
    /// @param operator the worker
    /// @param endpoint the new endpoint
    event EndpointSet(address indexed operator, string endpoint);
    /// @notice A session key may sign.
    /// @param operator the worker
    /// @param key the session key
    /// @param validUntil the last block time at which it may
    event SessionKeyAuthorized(address indexed operator, address indexed key, uint64 validUntil);
    /// @notice A session key may sign no more.
    /// @param operator the worker
    /// @param key the session key
    event SessionKeyRevoked(address indexed operator, address indexed key);
    /// @notice The owner asked to leave.
    /// @param operator the worker
    /// @param withdrawableAt block time from which withdrawStake() works
    event UnbondRequested(address indexed operator, uint64 withdrawableAt);
    /// @notice The owner stays.
    /// @param operator the worker
    event UnbondCancelled(address indexed operator);
    /// @notice The worker left.
    /// @param operator the worker
    /// @param owner who got the stake
    /// @param stake base units
    event StakeWithdrawn(address indexed operator, address indexed owner, uint128 stake);
    /// @notice The slasher keeps the stake here.
    /// @param operator the worker
    /// @param until block time before which it stays
    event StakeFrozen(address indexed operator, uint64 until);
    /// @notice The slasher suspended the worker, or ended its suspension.
    /// @param operator the worker
    /// @param suspended whether it is suspended now
    event WorkerSuspended(address indexed operator, bool suspended);
    /// @notice The slasher took stake.
    /// @param operator the worker
    /// @param payee who may claim it; zero when it is forfeited
    /// @param amount what was taken
    /// @param stake what is left
    event StakeSlashed(address indexed operator, address indexed payee, uint128 amount, uint128 stake);
    /// @notice A reward was sent to its payee.
    /// @param payee who got it
    /// @param amount base units
    event RewardPushed(address indexed payee, uint256 amount);

    error UnbondingDelayOutOfRange(uint64 delay, uint64 minimum, uint64 maximum);
    error ZeroAmount();
    error BadParty(address party);
    error Expired(uint64 deadline, uint256 blockTime);
    error WrongNonce(uint64 given, uint64 expected);
    error OperatorDidNotConsent(address operator);
    error AlreadyRegistered(address operator);
    error UnknownWorker(address operator);
    error StakeTooSmall(uint128 stake, uint128 minimum);
    error StakeMismatch(uint256 expected, uint256 received);
    error BadEndpointLength(uint256 length, uint256 maximum);
    error NotOwner(address caller, address owner);
    error NotOfferedOwner(address caller, address offered);
    error NotOwnerOrOperator(address caller, address owner, address operator);
    error NotSlasher(address caller, address slasher);
    error SessionTooLong(uint64 validUntil, uint256 latest);
    error FreezeTooLong(uint64 until, uint256 latest);
    error UnbondAlreadyRequested(address operator, uint64 requestedAt);
    error UnbondNotRequested(address operator);
    error StillBonded(address operator, uint64 withdrawableAt, uint256 blockTime);
    error StillFrozen(address operator, uint64 frozenUntil, uint256 blockTime);
    error NothingToPush(address payee);

    // ------------------------------------------------------------------ joining

    /// @notice Registers a worker with the caller's stake (allowance needed). By the operator itself, or by anybody
    /// with the operator's signature over the registration.
    /// @param registration the terms
    /// @param operatorSignature 65 bytes; empty when the operator calls
    function register(Registration calldata registration, bytes calldata operatorSignature) external;

    /// @notice register() and the caller's EIP-2612 permit for the stake in one transaction.
    /// @param registration the terms
    /// @param operatorSignature 65 bytes; empty when the operator calls
    /// @param permitDeadline deadline of the caller's permit over `registration.stake` for the registry
    /// @param permitSignature the caller's: 65 bytes, or what a smart account accepts
    function registerWithPermit(
        Registration calldata registration,
        bytes calldata operatorSignature,
        uint256 permitDeadline,
        bytes calldata permitSignature
    ) external;

    /// @notice Adds to a bonded worker's stake from the caller. It belongs to the worker's owner from then on.
    /// @param operator the worker
    /// @param amount base units
    function addStake(address operator, uint128 amount) external;

    // ------------------------------------------------------------------ settings

    /// @notice By the owner.
    /// @param operator the worker
    /// @param payout the new payout address
    function setPayout(address operator, address payout) external;

    /// @notice By the owner: lets `owner` take the ownership over. Zero takes an offer back.
    /// @param operator the worker
    /// @param owner who may accept
    function offerOwner(address operator, address owner) external;

    /// @notice By the offered owner. Who cannot call this cannot become owner, so a stake never goes to an address
    /// that cannot act.
    /// @param operator the worker
    function acceptOwner(address operator) external;

    /// @notice By the owner or the operator.
    /// @param operator the worker
    /// @param endpoint the new endpoint
    function setEndpoint(address operator, string calldata endpoint) external;

    /// @notice By the operator: `key` may sign for it up to and including block time `validUntil`.
    /// @param key the session key
    /// @param validUntil at most MAX_SESSION_SECONDS from now
    function authorizeSessionKey(address key, uint64 validUntil) external;

    /// @notice By the owner or the operator.
    /// @param operator the worker
    /// @param key the session key
    function revokeSessionKey(address operator, address key) external;

    // ------------------------------------------------------------------ leaving

    /// @notice By the owner: the worker is inactive at once, the stake free after unbondingDelay.
    /// @param operator the worker
    function requestUnbond(address operator) external;

    /// @notice By the owner.
    /// @param operator the worker
    function cancelUnbond(address operator) external;

    /// @notice By the owner, after the delay and not while frozen: the stake goes to the owner and the registration
    /// ends.
    /// @param operator the worker
    function withdrawStake(address operator) external;

    // ------------------------------------------------------------------ slashing

    /// @notice By the slasher: no stake leaves before `until`. An earlier time than the present one changes nothing.
    /// @param operator the worker
    /// @param until at most MAX_FREEZE_SECONDS from now
    function freeze(address operator, uint64 until) external;

    /// @notice By the slasher: the worker is inactive until the suspension ends. It dies with the registration.
    /// @param operator the worker
    /// @param suspended whether it is suspended from now on
    function suspend(address operator, bool suspended) external;

    /// @notice By the slasher: takes `amount` of the stake. It waits for pushReward(payee). With payee zero it is
    /// forfeited: counted, and nobody can ever claim it.
    /// @param operator the worker
    /// @param amount base units, at most the stake
    /// @param payee who may claim it, or zero
    function slash(address operator, uint128 amount, address payee) external;

    /// @notice Sends what waits for `payee` to it, and to nobody else. Anybody may call.
    /// @param payee who gets it
    function pushReward(address payee) external;

    // ------------------------------------------------------------------ views

    /// @notice Registered, not leaving, not suspended, stake at least the minimum.
    /// @param operator the worker
    /// @return active whether clients should choose it
    function isActive(address operator) external view returns (bool active);

    /// @notice Whether `key` signs for the registered `operator` now: the operator's own key or a live session key.
    /// @param operator the worker
    /// @param key the key
    /// @return signs whether it does
    function isSigner(address operator, address key) external view returns (bool signs);

    /// @notice One worker; reverts for an unknown one.
    /// @param operator the worker
    /// @return worker see WorkerView
    function getWorker(address operator) external view returns (WorkerView memory worker);

    /// @notice Registrations that this operator ever had: the nonce of the next one.
    /// @param operator the worker
    /// @return nonce the next nonce
    function registrationNonce(address operator) external view returns (uint64 nonce);

    /// @notice How many workers are registered.
    /// @return count workers
    function workerCount() external view returns (uint256 count);

    /// @notice Workers `offset` to `offset + limit`, fewer at the end. The order changes when a worker leaves (the
    /// last one takes its place), so a page walk pins one block.
    /// @param offset first place
    /// @param limit at most so many
    /// @return page the workers
    function workers(uint256 offset, uint256 limit) external view returns (WorkerView[] memory page);

    /// @notice What waits for pushReward.
    /// @param payee whose
    /// @return amount base units
    function rewardOf(address payee) external view returns (uint256 amount);

    /// @notice What was slashed and belongs to nobody.
    /// @return amount base units
    function forfeited() external view returns (uint256 amount);

    /// @notice The separator under which registrations are signed.
    /// @return separator of the domain ("Piecework Registry", "2", chain id, this contract)
    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32 separator);

    /// @notice The only account that may freeze and slash: the deployer.
    /// @return account the slasher
    function slasher() external view returns (address account);

    /// @notice The token that is staked.
    /// @return token its address
    function stakeToken() external view returns (address token);

    /// @notice The least stake of an active worker.
    /// @return stake base units
    function minStake() external view returns (uint128 stake);

    /// @notice How long a stake stays after the request to leave.
    /// @return delay seconds
    function unbondingDelay() external view returns (uint64 delay);

    /// @notice Long enough for any host name with a port; short enough that a page of workers stays small.
    /// @return length bytes
    function MAX_ENDPOINT_BYTES() external view returns (uint256 length);

    /// @notice A forgotten session key must die by itself.
    /// @return duration seconds
    function MAX_SESSION_SECONDS() external view returns (uint64 duration);

    /// @notice A dispute over the last job of a worker that leaves takes up to six days.
    /// @return delay seconds
    function MIN_UNBONDING_DELAY() external view returns (uint64 delay);

    /// @notice A mistyped delay must not lock stakes for years.
    /// @return delay seconds
    function MAX_UNBONDING_DELAY() external view returns (uint64 delay);

    /// @notice One call of a slasher with a defect must not lock stakes for years.
    /// @return duration seconds
    function MAX_FREEZE_SECONDS() external view returns (uint64 duration);
}
