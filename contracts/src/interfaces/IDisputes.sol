// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

import {OpenedLeaf} from "../libraries/TraceLeaves.sol";
import {Challenge, Fault, IEvidenceVerifier} from "./IEvidenceVerifier.sol";
import {IWorkerRegistry} from "./IWorkerRegistry.sol";

/// @notice The terms of a dispute contract. They are in its address.
/// @param verifier what reads the evidence, and so the escrow whose objects are judged
/// @param stakeToken the token that its registry holds as stakes
/// @param minStake the least stake of an active worker, base units
/// @param unbondingDelay how long a stake stays after the request to leave, seconds
/// @param provingCost what one transaction of a proof costs, base units of the stake token: no oracle says it
/// @param minBond the least bond of a challenge, wei, for chains whose base fee is not all of the cost
/// @param verdictFee what a committee member gets for a verdict, base units of the stake token
/// @param committee the members, ascending; may be empty
/// @param threshold how many of them make a verdict
struct DisputeTerms {
    IEvidenceVerifier verifier;
    address stakeToken;
    uint128 minStake;
    uint64 unbondingDelay;
    uint128 provingCost;
    uint96 minBond;
    uint128 verdictFee;
    address[] committee;
    uint8 threshold;
}

/// @notice Where a challenge stands. Late is a silence that was answered afterwards.
enum Status {
    None,
    Open,
    Answered,
    Silent,
    Late,
    Escalated,
    Guilty,
    NotGuilty,
    NoVerdict
}

/// @notice What the chain knows of a challenge.
/// @param status where it stands
/// @param answerBy the last block time of the answer
/// @param bond wei
struct ChallengeState {
    Status status;
    uint64 answerBy;
    uint96 bond;
}

/// @title Disputes: what takes a worker's stake
/// @notice Immutable: no owner, no upgrade, no switch. It deploys its own registry, whose slasher it is. docs/disputes.md
/// has the rules with their costs. contracts/PROPERTIES.md numbers what always holds.
///
/// - A proof needs one transaction by anybody. It takes the whole stake.
/// - A challenge asks for fields of a leaf, by payer or authorizer with a bond in the chain's coin. The bond goes to
///   the operator when it answers in time, whoever sends the answer: a copied answer would take it otherwise.
///   Silence gives it back and takes a small part of the stake.
/// - An answered challenge can be escalated to the committee, M of whose members judge by re-execution.
///
/// A reward is min(slash / 10, 20 * provingCost), a credit of the channel's payer. The rest of a slash stays in the
/// registry and belongs to nobody, so reporting oneself is no way out.
///
/// Assumptions: the stake token is a plain ERC-20. Block times move by seconds. The committee is honest in its
/// majority where a verdict decides.
interface IDisputes {
    /// @notice A proof held, and the whole stake is gone.
    /// @param operator the worker
    /// @param payer of the channel
    /// @param fault what was proved
    /// @param slashed base units
    event FaultProved(address indexed operator, address indexed payer, Fault fault, uint128 slashed);
    /// @notice A worker has to open a leaf.
    /// @param id of the challenge
    /// @param operator who has to answer
    /// @param challenge what is asked
    /// @param startsAt when its window starts
    /// @param answerBy the last block time of the answer
    /// @param bond wei
    event ChallengeOpened(
        bytes32 indexed id,
        address indexed operator,
        Challenge challenge,
        uint64 startsAt,
        uint64 answerBy,
        uint96 bond
    );
    /// @notice The leaf was opened.
    /// @param id of the challenge
    /// @param inTime whether the answer came within its window
    /// @param leaf the digests of all fields and the bytes of the opened ones
    event LeafOpened(bytes32 indexed id, bool inTime, OpenedLeaf leaf);
    /// @notice Nobody answered in time.
    /// @param id of the challenge
    /// @param operator the worker
    /// @param slashed base units; less than the rule says when other silences took the day's share
    event Silence(bytes32 indexed id, address indexed operator, uint128 slashed);
    /// @notice A challenge went to the committee.
    /// @param id of the challenge
    /// @param operator the worker
    /// @param verdictBy the last block time of the verdict
    event ChallengeEscalated(bytes32 indexed id, address indexed operator, uint64 verdictBy);
    /// @notice The committee judged.
    /// @param id of the challenge
    /// @param operator the worker
    /// @param guilty whether it broke the rule
    /// @param leafRoot of the leaves that the members' replay gave
    /// @param slashed base units
    event VerdictGiven(
        bytes32 indexed id, address indexed operator, bool guilty, bytes32 leafRoot, uint128 slashed
    );
    /// @notice The committee did not judge in time.
    /// @param id of the challenge
    event NoVerdictGiven(bytes32 indexed id);
    /// @notice A member signed two verdicts about one challenge.
    /// @param member who
    /// @param id of the challenge
    event MemberContradicted(address indexed member, bytes32 indexed id);
    /// @notice A reward waits until the other challenges against the operator have ended.
    /// @param reward its number
    /// @param operator the worker
    /// @param payer who gets it
    /// @param amount base units
    event RewardWaits(
        uint256 indexed reward, address indexed operator, address indexed payer, uint128 amount
    );
    /// @notice A waiting reward ended.
    /// @param reward its number
    /// @param paid false when another challenge against the operator was upheld
    event RewardEnded(uint256 indexed reward, bool paid);
    /// @notice A credit in stake tokens grew.
    /// @param who its owner
    /// @param amount base units that were added
    event TokensCredited(address indexed who, uint256 amount);
    /// @notice A credit in the chain's coin grew.
    /// @param who its owner
    /// @param amount wei that were added
    event CoinsCredited(address indexed who, uint256 amount);
    /// @notice Credits were sent to their owner.
    /// @param who their owner
    /// @param tokens base units of the stake token
    /// @param coins wei
    event CreditsPushed(address indexed who, uint256 tokens, uint256 coins);

    error WindowsDoNotFit(uint64 unbondingDelay, uint64 needed);
    error BadCommittee();
    error BadTerms();
    error NotContradictory();
    error NothingAtStake(address operator);
    error ChallengeTooLate(uint256 latest, uint256 blockTime);
    error NotAProof(uint256 length);
    error NotAQuestion(uint256 length);
    error BadLeaf(uint32 leaf, uint8 fields);
    error BondTooSmall(uint256 given, uint256 needed);
    error AlreadyAsked(bytes32 id);
    error ChannelHasChallenge(bytes32 channel, bytes32 id);
    error WrongStatus(bytes32 id, Status status);
    error NotDue(uint64 due, uint256 blockTime);
    error TooLate(uint64 due, uint256 blockTime);
    error NotChallenger(address caller, address challenger);
    error NoCommittee();
    error NotAMember(address signer);
    error NotOrdered();
    error WrongNumberOfVotes(uint256 given, uint256 expected);
    error NoReward(uint256 reward);
    error RewardStillWaits(uint256 reward, uint256 open);
    error NothingToPush(address who);
    error CoinsRefused(address who);

    // ------------------------------------------------------------------ proofs

    /// @notice Takes the whole stake of the operator that a proof convicts, and suspends it until its registration ends.
    /// Anybody may call.
    /// @param proof the call of one of the verifier's `proveX` functions
    function prove(bytes calldata proof) external;

    // ------------------------------------------------------------------ challenges

    /// @notice Asks the operator to open fields of a leaf. The coin that is sent is the bond, at least requiredBond().
    /// By payer or authorizer, until CHALLENGE_SECONDS after the job's deadline. One open challenge a channel. Of
    /// one operator at most MAX_RUNNING windows run at a time; the others start later, and within 7 days.
    /// @param question the call of the verifier's `ask`
    /// @return id of the challenge
    function challenge(bytes calldata question) external payable returns (bytes32 id);

    /// @notice Opens the leaf. In time it ends the challenge, and the operator is credited the bond. After a silence
    /// it ends that silence's part in a suspension.
    /// @param asked the challenge
    /// @param leaf the leaf with at least the asked fields
    function answer(Challenge calldata asked, OpenedLeaf calldata leaf) external;

    /// @notice Ends a challenge whose time is over: an open one is a silence, an escalated one has no verdict.
    /// @param asked the challenge
    function conclude(Challenge calldata asked) external;

    /// @notice Brings an answered challenge about a step to the committee, by its challenger, with threshold + 1
    /// verdict fees as bond (allowance needed).
    /// @param asked the challenge
    function escalate(Challenge calldata asked) external;

    /// @notice Carries out the verdict of exactly `threshold` members.
    /// @param asked the challenge
    /// @param guilty whether the operator broke the rule
    /// @param leafRoot of the leaves that the members' replay gave
    /// @param deadline of the votes
    /// @param signatures the members', ascending by their addresses
    function judge(
        Challenge calldata asked,
        bool guilty,
        bytes32 leafRoot,
        uint64 deadline,
        bytes[] calldata signatures
    ) external;

    /// @notice Shows that a member signed two different verdicts about one challenge. It costs the member nothing here.
    /// @param id of the challenge
    /// @param guilty of the first and of the second vote
    /// @param leafRoots of the first and of the second vote
    /// @param deadlines of the first and of the second vote
    /// @param signatures of the first and of the second vote
    function showContradiction(
        bytes32 id,
        bool[2] calldata guilty,
        bytes32[2] calldata leafRoots,
        uint64[2] calldata deadlines,
        bytes[2] calldata signatures
    ) external;

    // ------------------------------------------------------------------ payouts

    /// @notice Ends a waiting reward once no challenge against its operator is open.
    /// @param reward its number
    function endReward(uint256 reward) external;

    /// @notice Sends all credits of `who` to it, and to nobody else. Anybody may call.
    /// @param who their owner
    function pushCredits(address who) external;

    // ------------------------------------------------------------------ views

    /// @notice Where a challenge stands.
    /// @param id of the challenge
    /// @return state see ChallengeState
    function getChallenge(bytes32 id) external view returns (ChallengeState memory state);

    /// @notice The id of a challenge.
    /// @param asked the challenge
    /// @return id its hash
    function challengeId(Challenge calldata asked) external pure returns (bytes32 id);

    /// @notice The channel's open challenge, 0 for none.
    /// @param channel the channel's id
    /// @return id of the challenge
    function openOf(bytes32 channel) external view returns (bytes32 id);

    /// @notice Challenges against an operator that are open or before the committee.
    /// @param operator the worker
    /// @return count challenges
    function openCount(address operator) external view returns (uint256 count);

    /// @notice The bond of a challenge in this block.
    /// @return bond wei
    function requiredBond() external view returns (uint256 bond);

    /// @notice What waits for pushCredits.
    /// @param who whose
    /// @return tokens base units of the stake token
    /// @return coins wei
    function creditsOf(address who) external view returns (uint256 tokens, uint256 coins);

    /// @notice Rewards that were lost. They belong to nobody.
    /// @return amount base units of the stake token
    function lost() external view returns (uint256 amount);

    /// @notice The registry whose slasher this is.
    /// @return registry its address
    function registry() external view returns (IWorkerRegistry registry);

    /// @notice What reads the evidence.
    /// @return verifier its address
    function verifier() external view returns (IEvidenceVerifier verifier);

    /// @notice What one transaction of a proof costs.
    /// @return cost base units of the stake token
    function provingCost() external view returns (uint128 cost);

    /// @notice The least bond of a challenge.
    /// @return bond wei
    function minBond() external view returns (uint96 bond);

    /// @notice What a member gets for a verdict.
    /// @return fee base units of the stake token
    function verdictFee() external view returns (uint128 fee);

    /// @notice How many members make a verdict, 0 without a committee.
    /// @return count members
    function threshold() external view returns (uint8 count);

    /// @notice Whether `who` is a member of the committee.
    /// @param who an address
    /// @return member whether it is
    function isMember(address who) external view returns (bool member);

    /// @notice The separator under which verdicts are signed.
    /// @return separator of the domain ("Piecework Disputes", "2", chain id, this contract)
    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32 separator);

    /// @notice The longest life of a job, seconds.
    /// @return duration seconds
    // solhint-disable-next-line func-name-mixedcase
    function JOB_SECONDS() external view returns (uint64 duration);

    /// @notice How long after a job's deadline it can be challenged, seconds.
    /// @return duration seconds
    // solhint-disable-next-line func-name-mixedcase
    function CHALLENGE_SECONDS() external view returns (uint64 duration);

    /// @notice How long an answer may take once its window runs, seconds.
    /// @return duration seconds
    // solhint-disable-next-line func-name-mixedcase
    function ANSWER_SECONDS() external view returns (uint64 duration);

    /// @notice How long after the answer's window an answered challenge can be escalated, seconds.
    /// @return duration seconds
    // solhint-disable-next-line func-name-mixedcase
    function ESCALATE_SECONDS() external view returns (uint64 duration);

    /// @notice How long after the answer's window a verdict may come, seconds.
    /// @return duration seconds
    // solhint-disable-next-line func-name-mixedcase
    function VERDICT_SECONDS() external view returns (uint64 duration);

    /// @notice Windows of one operator that run at a time.
    /// @return count windows
    // solhint-disable-next-line func-name-mixedcase
    function MAX_RUNNING() external view returns (uint256 count);
}
