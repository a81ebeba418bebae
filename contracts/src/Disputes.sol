// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {WorkerRegistry} from "./WorkerRegistry.sol";
import {ChallengeState, DisputeTerms, IDisputes, Status} from "./interfaces/IDisputes.sol";
import {Challenge, Fault, IEvidenceVerifier} from "./interfaces/IEvidenceVerifier.sol";
import {IWorkerRegistry, WorkerView} from "./interfaces/IWorkerRegistry.sol";
import {EvidenceTypes, Verdict} from "./libraries/EvidenceTypes.sol";
import {OpenedLeaf, TraceLeaves} from "./libraries/TraceLeaves.sol";

/// @title Disputes (promises and assumptions: IDisputes)
/// @dev The same order inside every function as in Escrow: identify, check, effect, event, interact. The registry is
/// this contract's own code and calls nobody when it freezes, suspends or slashes.
contract Disputes is IDisputes, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @inheritdoc IDisputes
    uint64 public constant JOB_SECONDS = 24 hours;
    /// @inheritdoc IDisputes
    uint64 public constant CHALLENGE_SECONDS = 3 days;
    /// @inheritdoc IDisputes
    uint64 public constant ANSWER_SECONDS = 1 days;
    /// @inheritdoc IDisputes
    uint64 public constant ESCALATE_SECONDS = 12 hours;
    /// @inheritdoc IDisputes
    uint64 public constant VERDICT_SECONDS = 1 days;
    /// @inheritdoc IDisputes
    uint256 public constant MAX_RUNNING = 8;
    /// @dev About twice what an answer with all fields of a released canvas costs.
    uint256 private constant _BOND_GAS = 2 * 210_000;
    uint256 private constant _REWARD_COSTS = 20;
    uint256 private constant _SLASH_AMOUNTS = 1000;
    uint64 private constant _SUSPENSION_SECONDS = 7 days;
    uint256 private constant _MAX_COMMITTEE = 32;
    /// @dev A worker that challenges itself could otherwise fill its line, so that nobody else gets in.
    uint64 private constant _MAX_WAIT_SECONDS = 7 days;

    /// @dev One word. `registration` is the worker's at the opening.
    struct Stored {
        Status status;
        uint8 lane;
        uint64 answerBy;
        uint64 registration;
        uint96 bond;
    }

    /// @dev The two latest silences of a registration, by the time at which the answer was due.
    struct Silences {
        uint64 last;
        uint64 previous;
        uint64 unanswered;
    }

    struct Reward {
        address operator;
        address payer;
        uint128 amount;
        uint64 upheld;
    }

    /// @inheritdoc IDisputes
    IWorkerRegistry public immutable registry;
    /// @inheritdoc IDisputes
    IEvidenceVerifier public immutable verifier;
    IERC20 private immutable _stakeToken;
    /// @inheritdoc IDisputes
    uint128 public immutable provingCost;
    /// @inheritdoc IDisputes
    uint96 public immutable minBond;
    /// @inheritdoc IDisputes
    uint128 public immutable verdictFee;
    /// @inheritdoc IDisputes
    uint8 public immutable threshold;

    /// @inheritdoc IDisputes
    mapping(address who => bool) public isMember;
    mapping(bytes32 id => Stored) private _challenges;
    /// @inheritdoc IDisputes
    mapping(bytes32 channel => bytes32 id) public openOf;
    /// @inheritdoc IDisputes
    mapping(address operator => uint256) public openCount;
    mapping(address operator => uint64) private _upheld;
    mapping(address operator => uint256) private _asked;
    /// @dev Until when each of an operator's lanes is taken.
    mapping(address operator => uint64[MAX_RUNNING]) private _lanes;
    /// @dev What silences took, by the day on which their answers were due.
    mapping(address operator => mapping(uint256 day => uint256)) private _silenced;
    mapping(uint64 registration => Silences) private _silences;
    mapping(uint64 registration => bool) private _convicted;
    mapping(uint256 number => Reward) private _rewards;
    uint256 private _lastReward;
    mapping(address who => uint256) private _tokens;
    mapping(address who => uint256) private _coins;
    /// @inheritdoc IDisputes
    uint256 public lost;

    /// @notice Deploys the registry, whose slasher this becomes.
    /// @param terms see DisputeTerms
    constructor(DisputeTerms memory terms) EIP712("Piecework Disputes", "2") {
        uint64 needed = JOB_SECONDS + CHALLENGE_SECONDS + ANSWER_SECONDS + VERDICT_SECONDS;
        if (terms.unbondingDelay <= needed) revert WindowsDoNotFit(terms.unbondingDelay, needed);
        if (address(terms.verifier).code.length == 0 || terms.provingCost == 0) revert BadTerms();
        if (terms.provingCost > type(uint96).max || terms.verdictFee > type(uint96).max) revert BadTerms();
        uint256 members = terms.committee.length;
        bool sane = members <= _MAX_COMMITTEE && terms.threshold <= members
            && (terms.threshold > members / 2 || members == 0);
        if (!sane) revert BadCommittee();
        address earlier = address(0);
        for (uint256 i = 0; i < members; ++i) {
            if (terms.committee[i] <= earlier) revert BadCommittee();
            earlier = terms.committee[i];
            isMember[earlier] = true;
        }
        verifier = terms.verifier;
        _stakeToken = IERC20(terms.stakeToken);
        provingCost = terms.provingCost;
        minBond = terms.minBond;
        verdictFee = terms.verdictFee;
        threshold = terms.threshold;
        registry = new WorkerRegistry{salt: bytes32(0)}(
            IERC20(terms.stakeToken), terms.minStake, terms.unbondingDelay
        );
    }

    // ------------------------------------------------------------------ proofs

    /// @inheritdoc IDisputes
    /// @dev Only proofs return three words.
    function prove(bytes calldata proof) external nonReentrant {
        bytes memory found = _read(proof);
        if (found.length != 3 * 32) revert NotAProof(found.length);
        (Fault fault, address operator, address payer) = abi.decode(found, (Fault, address, address));
        WorkerView memory worker = registry.getWorker(operator);
        uint128 stake = worker.stake;
        if (stake == 0) revert NothingAtStake(operator);
        _convicted[worker.id] = true;
        emit FaultProved(operator, payer, fault, stake);
        _slash(operator, payer, stake, stake);
        // Nobody may challenge it any more. So a stake that is added later must not make it active again.
        registry.suspend(operator, true);
    }

    // ------------------------------------------------------------------ challenges

    /// @inheritdoc IDisputes
    /// @dev Only `ask` returns a challenge and a deadline.
    function challenge(bytes calldata question) external payable nonReentrant returns (bytes32 id) {
        bytes memory found = _read(question);
        if (found.length != 12 * 32) revert NotAQuestion(found.length);
        (Challenge memory asked, uint64 deadline) = abi.decode(found, (Challenge, uint64));
        if (msg.sender != asked.challenger) revert NotChallenger(msg.sender, asked.challenger);
        uint256 latest = uint256(deadline) + CHALLENGE_SECONDS;
        if (block.timestamp > latest) revert ChallengeTooLate(latest, block.timestamp);
        uint256 needed = requiredBond();
        if (msg.value < needed || msg.value > type(uint96).max) revert BondTooSmall(msg.value, needed);
        id = _id(asked);
        if (_challenges[id].status != Status.None) revert AlreadyAsked(id);
        uint64 registration = registry.getWorker(asked.operator).id;
        if (_convicted[registration]) revert NothingAtStake(asked.operator);
        _begin(asked.channel, asked.operator, id);
        (uint8 lane, uint64 startsAt) = _takeLane(asked.operator);
        uint64 answerBy = startsAt + ANSWER_SECONDS;
        _challenges[id] = Stored(Status.Open, lane, answerBy, registration, uint96(msg.value));
        emit ChallengeOpened(id, asked.operator, asked, startsAt, answerBy, uint96(msg.value));
        // A verdict comes until that second. The stake is free from the next one.
        registry.freeze(asked.operator, answerBy + VERDICT_SECONDS + 1);
    }

    /// @inheritdoc IDisputes
    function answer(Challenge calldata asked, OpenedLeaf calldata leaf) external nonReentrant {
        bytes32 id = _id(asked);
        Stored storage stored = _challenges[id];
        Status status = stored.status;
        if (status != Status.Open && status != Status.Silent) revert WrongStatus(id, status);
        if (status == Status.Open && block.timestamp > stored.answerBy) {
            revert TooLate(stored.answerBy, block.timestamp);
        }
        if (leaf.index != asked.leaf) revert BadLeaf(asked.leaf, asked.fields);
        TraceLeaves.requireIn(leaf, asked.traceRoot, uint64(asked.steps) + 1);
        for (uint256 field = 0; field < leaf.fields.length; ++field) {
            if ((asked.fields >> field) & 1 == 1) TraceLeaves.opened(leaf, field);
        }
        emit LeafOpened(id, status == Status.Open, leaf);
        if (status == Status.Silent) {
            stored.status = Status.Late;
            _forgive(asked.operator, stored.registration);
            return;
        }
        stored.status = Status.Answered;
        _end(asked.channel, asked.operator);
        _freeLane(asked.operator, stored.lane, stored.answerBy);
        _creditCoins(asked.operator, stored.bond);
    }

    /// @inheritdoc IDisputes
    function conclude(Challenge calldata asked) external nonReentrant {
        bytes32 id = _id(asked);
        Stored storage stored = _challenges[id];
        if (stored.status == Status.Open) {
            if (block.timestamp <= stored.answerBy) revert NotDue(stored.answerBy, block.timestamp);
            stored.status = Status.Silent;
            _end(asked.channel, asked.operator);
            ++_upheld[asked.operator];
            _creditCoins(asked.challenger, stored.bond);
            _silence(id, asked, stored.answerBy, stored.registration);
        } else if (stored.status == Status.Escalated) {
            uint64 verdictBy = stored.answerBy + VERDICT_SECONDS;
            if (block.timestamp <= verdictBy) revert NotDue(verdictBy, block.timestamp);
            stored.status = Status.NoVerdict;
            _end(asked.channel, asked.operator);
            _creditTokens(asked.challenger, _escalationBond());
            emit NoVerdictGiven(id);
        } else {
            revert WrongStatus(id, stored.status);
        }
    }

    /// @inheritdoc IDisputes
    function escalate(Challenge calldata asked) external nonReentrant {
        bytes32 id = _id(asked);
        Stored storage stored = _challenges[id];
        if (threshold == 0) revert NoCommittee();
        if (stored.status != Status.Answered) revert WrongStatus(id, stored.status);
        if (msg.sender != asked.challenger) revert NotChallenger(msg.sender, asked.challenger);
        if (asked.leaf == 0) revert BadLeaf(asked.leaf, asked.fields);
        uint64 latest = stored.answerBy + ESCALATE_SECONDS;
        if (block.timestamp > latest) revert TooLate(latest, block.timestamp);
        _begin(asked.channel, asked.operator, id);
        stored.status = Status.Escalated;
        emit ChallengeEscalated(id, asked.operator, stored.answerBy + VERDICT_SECONDS);
        _stakeToken.safeTransferFrom(msg.sender, address(this), _escalationBond());
    }

    /// @inheritdoc IDisputes
    function judge(
        Challenge calldata asked,
        bool guilty,
        bytes32 leafRoot,
        uint64 deadline,
        bytes[] calldata signatures
    ) external nonReentrant {
        bytes32 id = _id(asked);
        Stored storage stored = _challenges[id];
        if (stored.status != Status.Escalated) revert WrongStatus(id, stored.status);
        uint64 verdictBy = stored.answerBy + VERDICT_SECONDS;
        if (deadline < verdictBy) verdictBy = deadline;
        if (block.timestamp > verdictBy) revert TooLate(verdictBy, block.timestamp);
        address[] memory members = _requireVotes(Verdict(id, guilty, leafRoot, deadline), signatures);
        stored.status = guilty ? Status.Guilty : Status.NotGuilty;
        _end(asked.channel, asked.operator);
        if (guilty) {
            _punish(id, asked, leafRoot, stored.registration, members);
            return;
        }
        emit VerdictGiven(id, asked.operator, false, leafRoot, 0);
        for (uint256 i = 0; i < members.length; ++i) {
            _creditTokens(members[i], verdictFee);
        }
        _creditTokens(asked.operator, verdictFee);
    }

    /// @inheritdoc IDisputes
    function showContradiction(
        bytes32 id,
        bool[2] calldata guilty,
        bytes32[2] calldata leafRoots,
        uint64[2] calldata deadlines,
        bytes[2] calldata signatures
    ) external {
        if (guilty[0] == guilty[1] && leafRoots[0] == leafRoots[1]) {
            revert NotContradictory();
        }
        address[2] memory signers;
        for (uint256 i = 0; i < 2; ++i) {
            signers[i] = _signerOf(Verdict(id, guilty[i], leafRoots[i], deadlines[i]), signatures[i]);
        }
        if (signers[0] != signers[1]) revert NotContradictory();
        emit MemberContradicted(signers[0], id);
    }

    // ------------------------------------------------------------------ payouts

    /// @inheritdoc IDisputes
    function endReward(uint256 reward) external {
        Reward memory waiting = _rewards[reward];
        if (waiting.amount == 0) revert NoReward(reward);
        uint256 open = openCount[waiting.operator];
        if (open > 0) revert RewardStillWaits(reward, open);
        delete _rewards[reward];
        bool paid = _upheld[waiting.operator] == waiting.upheld;
        emit RewardEnded(reward, paid);
        if (paid) _creditTokens(waiting.payer, waiting.amount);
        else lost += waiting.amount;
    }

    /// @inheritdoc IDisputes
    function pushCredits(address who) external nonReentrant {
        (uint256 tokens, uint256 coins) = (_tokens[who], _coins[who]);
        if (tokens == 0 && coins == 0) revert NothingToPush(who);
        (_tokens[who], _coins[who]) = (0, 0);
        emit CreditsPushed(who, tokens, coins);
        if (tokens > 0) {
            if (registry.rewardOf(address(this)) > 0) registry.pushReward(address(this));
            _stakeToken.safeTransfer(who, tokens);
        }
        if (coins > 0) {
            (bool sent,) = who.call{value: coins}("");
            if (!sent) revert CoinsRefused(who);
        }
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc IDisputes
    function getChallenge(bytes32 id) external view returns (ChallengeState memory) {
        Stored storage stored = _challenges[id];
        return ChallengeState(stored.status, stored.answerBy, stored.bond);
    }

    /// @inheritdoc IDisputes
    function challengeId(Challenge calldata asked) external pure returns (bytes32) {
        return _id(asked);
    }

    /// @inheritdoc IDisputes
    function requiredBond() public view returns (uint256) {
        uint256 bond = _BOND_GAS * block.basefee;
        return bond > minBond ? bond : minBond;
    }

    /// @inheritdoc IDisputes
    function creditsOf(address who) external view returns (uint256 tokens, uint256 coins) {
        return (_tokens[who], _coins[who]);
    }

    /// @inheritdoc IDisputes
    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    // ------------------------------------------------------------------ checks

    /// @dev What the verifier answers to a call. Reverts with what it reverted with.
    function _read(bytes calldata call) private view returns (bytes memory found) {
        bool done;
        (done, found) = address(verifier).staticcall(call);
        if (done) return found;
        assembly ("memory-safe") {
            revert(add(found, 0x20), mload(found))
        }
    }

    /// @dev Exactly `threshold` members, ascending, so that none votes twice.
    function _requireVotes(Verdict memory verdict, bytes[] calldata signatures)
        private
        view
        returns (address[] memory members)
    {
        if (signatures.length != threshold) revert WrongNumberOfVotes(signatures.length, threshold);
        members = new address[](signatures.length);
        address earlier = address(0);
        for (uint256 i = 0; i < members.length; ++i) {
            members[i] = _signerOf(verdict, signatures[i]);
            if (members[i] <= earlier) revert NotOrdered();
            earlier = members[i];
        }
    }

    function _signerOf(Verdict memory verdict, bytes calldata signature) private view returns (address) {
        bytes32 digest = _hashTypedDataV4(EvidenceTypes.hashVerdict(verdict));
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (failure != ECDSA.RecoverError.NoError || !isMember[signer]) revert NotAMember(signer);
        return signer;
    }

    function _id(Challenge memory asked) private pure returns (bytes32) {
        return keccak256(abi.encode(asked));
    }

    function _escalationBond() private view returns (uint256) {
        return (uint256(threshold) + 1) * verdictFee;
    }

    // ------------------------------------------------------------------ effects

    function _begin(bytes32 channel, address operator, bytes32 id) private {
        if (openOf[channel] != 0) revert ChannelHasChallenge(channel, openOf[channel]);
        openOf[channel] = id;
        ++openCount[operator];
    }

    function _end(bytes32 channel, address operator) private {
        openOf[channel] = 0;
        --openCount[operator];
    }

    /// @dev Windows on one lane follow each other, so that at most MAX_RUNNING run at a time. Nobody waits longer than
    /// _MAX_WAIT_SECONDS: in a longer line more windows run.
    function _takeLane(address operator) private returns (uint8 lane, uint64 startsAt) {
        lane = uint8(_asked[operator]++ % MAX_RUNNING);
        uint64 taken = _lanes[operator][lane];
        startsAt = taken > block.timestamp ? taken : uint64(block.timestamp);
        uint64 latest = uint64(block.timestamp) + _MAX_WAIT_SECONDS;
        if (startsAt > latest) startsAt = latest;
        _lanes[operator][lane] = startsAt + ANSWER_SECONDS;
    }

    /// @dev An answer frees its lane for the next question, unless another waits on it already. What was answered while
    /// it waited frees its own window only: an earlier one may still run. When nothing is open, every lane is free.
    function _freeLane(address operator, uint8 lane, uint64 answerBy) private {
        if (openCount[operator] == 0) {
            delete _lanes[operator];
        } else if (_lanes[operator][lane] == answerBy) {
            _lanes[operator][lane] = answerBy - ANSWER_SECONDS;
        }
    }

    /// @dev Takes `amount`, of which the reward is at most `most`.
    function _slash(address operator, address payer, uint128 amount, uint128 most) private {
        uint128 reward = amount / 10;
        uint128 cap = uint128(_REWARD_COSTS * provingCost);
        if (reward > cap) reward = cap;
        if (reward > most) reward = most;
        _grant(operator, payer, reward);
        if (reward > 0) registry.slash(operator, reward, address(this));
        if (most > reward) registry.slash(operator, most - reward, address(0));
    }

    /// @dev A worker that another challenge is about to convict could otherwise report itself first.
    function _grant(address operator, address payer, uint128 reward) private {
        if (reward == 0) return;
        if (openCount[operator] == 0) {
            _creditTokens(payer, reward);
            return;
        }
        uint256 number = ++_lastReward;
        _rewards[number] = Reward(operator, payer, reward, _upheld[operator]);
        emit RewardWaits(number, operator, payer, reward);
    }

    /// @dev Of a silence: min(10 % of the stake, 1,000 * amount + 20 * provingCost). The answers that were due within
    /// 24 hours cost at most 10 % together: they are due on the same day or on days beside each other.
    function _silence(bytes32 id, Challenge calldata asked, uint64 answerBy, uint64 registration) private {
        uint128 stake = _stakeOf(asked.operator, registration);
        uint256 day = answerBy / 1 days;
        mapping(uint256 => uint256) storage silenced = _silenced[asked.operator];
        uint256 taken = silenced[day - 1] + silenced[day] + silenced[day + 1];
        uint256 most = (stake + taken) / 10;
        most = most > taken ? most - taken : 0;
        uint256 amount = _SLASH_AMOUNTS * _amountOf(asked) + _REWARD_COSTS * provingCost;
        uint128 slashed = uint128(amount < most ? amount : most);
        silenced[day] += slashed;
        emit Silence(id, asked.operator, slashed);
        if (slashed > 0) registry.slash(asked.operator, slashed, address(0));
        if (_note(registration, answerBy) && _isSame(asked.operator, registration)) {
            registry.suspend(asked.operator, true);
        }
    }

    /// @dev Whether this is the third silence within seven days.
    function _note(uint64 registration, uint64 due) private returns (bool) {
        Silences storage silences = _silences[registration];
        ++silences.unanswered;
        (uint64 low, uint64 middle, uint64 high) = (silences.previous, silences.last, due);
        if (high < middle) (middle, high) = (high, middle);
        if (middle < low) (low, middle) = (middle, low);
        (silences.previous, silences.last) = (middle, high);
        return low != 0 && high - low <= _SUSPENSION_SECONDS;
    }

    /// @dev A late answer. When none is missing, the worker is active again, unless a proof convicted it.
    function _forgive(address operator, uint64 registration) private {
        Silences storage silences = _silences[registration];
        --silences.unanswered;
        if (silences.unanswered > 0) return;
        delete _silences[registration];
        if (_isSame(operator, registration) && !_convicted[registration]) registry.suspend(operator, false);
    }

    /// @dev A verdict of guilty: min(stake, max(10 % of the stake, 1,000 * amount)). The members are paid out of it.
    function _punish(
        bytes32 id,
        Challenge calldata asked,
        bytes32 leafRoot,
        uint64 registration,
        address[] memory members
    ) private {
        uint128 stake = _stakeOf(asked.operator, registration);
        uint256 amount = _SLASH_AMOUNTS * _amountOf(asked);
        if (amount < stake / 10) amount = stake / 10;
        uint128 slashed = amount < stake ? uint128(amount) : stake;
        emit VerdictGiven(id, asked.operator, true, leafRoot, slashed);
        ++_upheld[asked.operator];
        _creditTokens(asked.challenger, _escalationBond());
        uint128 fee = uint128(slashed / members.length);
        if (fee > verdictFee) fee = verdictFee;
        uint128 fees = fee * uint128(members.length);
        for (uint256 i = 0; i < members.length; ++i) {
            _creditTokens(members[i], fee);
        }
        if (fees > 0) registry.slash(asked.operator, fees, address(this));
        _slash(asked.operator, asked.payer, slashed, slashed - fees);
    }

    /// @dev In stake tokens. What another token is worth, nobody says here.
    function _amountOf(Challenge calldata asked) private view returns (uint256) {
        return asked.token == address(_stakeToken) ? asked.amount : 0;
    }

    function _stakeOf(address operator, uint64 registration) private view returns (uint128) {
        return _isSame(operator, registration) ? registry.getWorker(operator).stake : 0;
    }

    /// @dev Whether the operator is still in the registration that was challenged.
    function _isSame(address operator, uint64 registration) private view returns (bool) {
        try registry.getWorker(operator) returns (WorkerView memory worker) {
            return worker.id == registration;
        } catch {
            return false;
        }
    }

    function _creditTokens(address who, uint256 amount) private {
        if (amount == 0) return;
        _tokens[who] += amount;
        emit TokensCredited(who, amount);
    }

    function _creditCoins(address who, uint256 amount) private {
        if (amount == 0) return;
        _coins[who] += amount;
        emit CoinsCredited(who, amount);
    }
}
