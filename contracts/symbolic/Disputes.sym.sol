// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Disputes} from "../src/Disputes.sol";
import {ChallengeState, DisputeTerms, Status} from "../src/interfaces/IDisputes.sol";
import {Challenge, Fault, IEvidenceVerifier} from "../src/interfaces/IEvidenceVerifier.sol";
import {WorkerView} from "../src/interfaces/IWorkerRegistry.sol";
import {BookToken, SVM, VM} from "./Symbolic.sol";

/// @notice The registry as Disputes may rely on it, for one worker. The registry has tests of its own.
contract BookRegistry {
    uint128 public stake;
    uint64 public id;
    uint128 public forfeited;
    uint128 public rewarded;
    uint64 public frozenUntil;
    bool public suspended;

    function set(uint128 stake_, uint64 id_) external {
        (stake, id) = (stake_, id_);
    }

    function getWorker(address) external view returns (WorkerView memory worker) {
        (worker.stake, worker.id) = (stake, id);
    }

    function slash(address, uint128 amount, address payee) external {
        require(amount > 0 && amount <= stake, "slash");
        stake -= amount;
        if (payee == address(0)) forfeited += amount;
        else rewarded += amount;
    }

    function freeze(address, uint64 until) external {
        frozenUntil = until;
    }

    function suspend(address, bool suspended_) external {
        suspended = suspended_;
    }
}

/// @notice A verifier that proves whatever it is told to.
contract ToldVerifier {
    bytes private _answer;

    function tell(bytes calldata answer) external {
        _answer = answer;
    }

    fallback(bytes calldata) external returns (bytes memory) {
        return _answer;
    }
}

/// @notice What one call does to any challenge of any worker in any state, proved by halmos for all inputs at once
/// (`make halmos`). `check_` functions must hold. Each `fails_` function is the negation of one.
contract DisputesSymbolic {
    SVM private constant svm = SVM(0xF3993A62377BCd56AE39D773740A5390411E8BC9);
    VM private constant vm = VM(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);
    uint128 private constant COST = 500_000;
    uint128 private constant FEE = 2_000_000;
    /// @dev Places in the storage of Disputes, after the two of EIP712.
    uint256 private constant REWARDS = 12;

    Disputes private disputes;
    BookToken private token;
    BookRegistry private book;
    ToldVerifier private verifier;

    /// @dev What belongs to whom before a call.
    struct Before {
        uint128 stake;
        uint256 payerTokens;
        uint256 payerCoins;
        uint256 operatorTokens;
        uint256 operatorCoins;
        uint256 senderTokens;
        uint256 senderCoins;
        uint256 lost;
        uint256 open;
    }

    function setUp() public {
        token = new BookToken();
        verifier = new ToldVerifier();
        address[] memory committee = new address[](3);
        (committee[0], committee[1], committee[2]) = (address(0x11), address(0x22), address(0x33));
        disputes = new Disputes(
            DisputeTerms(
                IEvidenceVerifier(address(verifier)), address(token), 1, 7 days, COST, 1, FEE, committee, 2
            )
        );
        book = BookRegistry(address(disputes.registry()));
        vm.etch(address(book), address(new BookRegistry()).code);
    }

    // ------------------------------------------------------------------ any state

    /// @dev Any question about a worker, with three different parties and a stranger that sends.
    function _challenge() private returns (Challenge memory asked, address sender) {
        svm.enableSymbolicStorage(address(disputes));
        vm.warp(uint64(svm.createUint(40, "now")) + 30 days);
        asked.channel = svm.createBytes32("channel");
        asked.payer = svm.createAddress("payer");
        asked.operator = svm.createAddress("operator");
        asked.challenger = asked.payer;
        asked.receipt = svm.createBytes32("receipt");
        asked.traceRoot = svm.createBytes32("trace");
        (asked.steps, asked.leaf, asked.fields) = (1, 1, 0x7f);
        asked.token = svm.createBool("stake token") ? address(token) : address(0xdead);
        asked.amount = uint128(svm.createUint(96, "amount"));
        sender = svm.createAddress("sender");
        vm.assume(asked.payer != asked.operator && sender != asked.payer && sender != asked.operator);
    }

    /// @dev Any stake, and books that no sum overflows.
    function _before(Challenge memory asked, address sender) private returns (Before memory b) {
        b.stake = uint128(svm.createUint(96, "stake"));
        book.set(b.stake, uint64(svm.createUint(64, "registration")));
        (b.payerTokens, b.payerCoins) = disputes.creditsOf(asked.payer);
        (b.operatorTokens, b.operatorCoins) = disputes.creditsOf(asked.operator);
        (b.senderTokens, b.senderCoins) = disputes.creditsOf(sender);
        b.lost = disputes.lost();
        b.open = disputes.openCount(asked.operator);
        vm.assume(b.payerTokens < 2 ** 200 && b.operatorTokens < 2 ** 200 && b.lost < 2 ** 200);
        vm.assume(b.payerCoins < 2 ** 200 && b.operatorCoins < 2 ** 200 && b.open < 2 ** 64);
    }

    /// @dev Whoever sends a call gets nothing for it.
    function _senderHas(address sender, Before memory b) private view {
        (uint256 tokens, uint256 coins) = disputes.creditsOf(sender);
        assert(tokens == b.senderTokens && coins == b.senderCoins);
    }

    function _payerGained(Challenge memory asked, Before memory b)
        private
        view
        returns (uint256 t, uint256 c)
    {
        (t, c) = disputes.creditsOf(asked.payer);
        (t, c) = (t - b.payerTokens, c - b.payerCoins);
    }

    function _operatorGained(Challenge memory asked, Before memory b)
        private
        view
        returns (uint256 t, uint256 c)
    {
        (t, c) = disputes.creditsOf(asked.operator);
        (t, c) = (t - b.operatorTokens, c - b.operatorCoins);
    }

    function _taken(Before memory b) private view returns (uint256) {
        assert(book.stake() + book.forfeited() + book.rewarded() == b.stake);
        return b.stake - book.stake();
    }

    // ------------------------------------------------------------------ prove

    function _prove(Challenge memory asked, address sender) private {
        uint256 fault = svm.createUint(8, "fault");
        vm.assume(fault <= uint256(type(Fault).max));
        verifier.tell(abi.encode(fault, asked.operator, asked.payer));
        vm.prank(sender);
        disputes.prove("");
    }

    function check_prove() public {
        (Challenge memory asked, address sender) = _challenge();
        Before memory b = _before(asked, sender);
        _prove(asked, sender);
        assert(_taken(b) == b.stake && book.suspended());
        uint256 reward = book.rewarded();
        assert(reward <= b.stake / 10 && reward <= 20 * COST);
        (uint256 gained, uint256 coins) = _payerGained(asked, b);
        assert(gained == (b.open == 0 ? reward : 0) && coins == 0);
        (gained, coins) = _operatorGained(asked, b);
        assert(gained == 0 && coins == 0);
        _senderHas(sender, b);
    }

    function fails_prove() public {
        (Challenge memory asked, address sender) = _challenge();
        Before memory b = _before(asked, sender);
        _prove(asked, sender);
        assert(book.rewarded() == b.stake / 10);
    }

    // ------------------------------------------------------------------ challenge

    /// @dev Any bond that the payer has.
    function _ask(Challenge memory asked) private returns (uint256 bond) {
        bond = svm.createUint(96, "bond");
        verifier.tell(abi.encode(asked, uint64(svm.createUint(64, "deadline"))));
        vm.deal(asked.challenger, bond);
        vm.prank(asked.challenger);
        disputes.challenge{value: bond}("");
    }

    function check_challenge() public {
        (Challenge memory asked, address sender) = _challenge();
        bytes32 id = disputes.challengeId(asked);
        Before memory b = _before(asked, sender);
        ChallengeState memory was = disputes.getChallenge(id);
        bytes32 wasOpen = disputes.openOf(asked.channel);
        uint256 held = address(disputes).balance;
        uint256 bond = _ask(asked);
        assert(was.status == Status.None && wasOpen == 0);
        ChallengeState memory made = disputes.getChallenge(id);
        assert(made.status == Status.Open && made.bond == bond && bond >= 1);
        assert(address(disputes).balance == held + bond);
        assert(disputes.openOf(asked.channel) == id && disputes.openCount(asked.operator) == b.open + 1);
        assert(made.answerBy >= block.timestamp + 1 days && made.answerBy <= block.timestamp + 8 days);
        assert(book.frozenUntil() > made.answerBy + 1 days);
        assert(_taken(b) == 0 && !book.suspended() && disputes.lost() == b.lost);
        (uint256 tokens, uint256 coins) = _payerGained(asked, b);
        assert(tokens == 0 && coins == 0);
        (tokens, coins) = _operatorGained(asked, b);
        assert(tokens == 0 && coins == 0);
        _senderHas(sender, b);
    }

    function fails_challenge() public {
        (Challenge memory asked, address sender) = _challenge();
        _before(asked, sender);
        _ask(asked);
        assert(disputes.getChallenge(disputes.challengeId(asked)).answerBy == block.timestamp + 1 days);
    }

    // ------------------------------------------------------------------ conclude

    function check_no_verdict() public {
        (Challenge memory asked, address sender) = _challenge();
        bytes32 id = disputes.challengeId(asked);
        Before memory b = _before(asked, sender);
        ChallengeState memory was = disputes.getChallenge(id);
        vm.assume(was.status == Status.Escalated);
        vm.prank(sender);
        disputes.conclude(asked);
        assert(block.timestamp > uint256(was.answerBy) + 1 days && _taken(b) == 0);
        (uint256 tokens, uint256 coins) = _payerGained(asked, b);
        assert(tokens == 3 * FEE && coins == 0);
        (tokens, coins) = _operatorGained(asked, b);
        assert(tokens == 0 && coins == 0);
        _senderHas(sender, b);
    }

    function fails_no_verdict() public {
        (Challenge memory asked, address sender) = _challenge();
        bytes32 id = disputes.challengeId(asked);
        _before(asked, sender);
        vm.assume(disputes.getChallenge(id).status == Status.Escalated);
        disputes.conclude(asked);
        assert(false);
    }

    // ------------------------------------------------------------------ judge

    /// @dev Two members vote, who are none of the parties and do not send.
    function _acquit(Challenge memory asked, address sender) private {
        bytes[] memory signatures = new bytes[](2);
        (signatures[0], signatures[1]) = (svm.createBytes(65, "first"), svm.createBytes(65, "second"));
        vm.assume(!disputes.isMember(asked.payer) && !disputes.isMember(asked.operator));
        vm.assume(!disputes.isMember(sender));
        bytes32 leafRoot = svm.createBytes32("leaf root");
        uint64 deadline = uint64(svm.createUint(64, "deadline"));
        vm.prank(sender);
        disputes.judge(asked, false, leafRoot, deadline, signatures);
    }

    function check_not_guilty() public {
        (Challenge memory asked, address sender) = _challenge();
        bytes32 id = disputes.challengeId(asked);
        Before memory b = _before(asked, sender);
        ChallengeState memory was = disputes.getChallenge(id);
        _acquit(asked, sender);
        assert(was.status == Status.Escalated && disputes.getChallenge(id).status == Status.NotGuilty);
        assert(block.timestamp <= uint256(was.answerBy) + 1 days && _taken(b) == 0 && !book.suspended());
        assert(disputes.openOf(asked.channel) == 0 && disputes.openCount(asked.operator) == b.open - 1);
        (uint256 tokens, uint256 coins) = _payerGained(asked, b);
        assert(tokens == 0 && coins == 0);
        (tokens, coins) = _operatorGained(asked, b);
        assert(tokens == FEE && coins == 0);
        _senderHas(sender, b);
    }

    function fails_not_guilty() public {
        (Challenge memory asked, address sender) = _challenge();
        _before(asked, sender);
        _acquit(asked, sender);
        assert(false);
    }

    // ------------------------------------------------------------------ endReward

    function _word(uint256 number, uint256 offset) private returns (uint256) {
        bytes32 place = bytes32(uint256(keccak256(abi.encode(number, REWARDS))) + offset);
        return uint256(vm.load(address(disputes), place));
    }

    function check_end_reward() public {
        (Challenge memory asked, address sender) = _challenge();
        uint256 number = svm.createUint(256, "reward");
        Before memory b = _before(asked, sender);
        vm.assume(address(uint160(_word(number, 0))) == asked.operator);
        vm.assume(address(uint160(_word(number, 1))) == asked.payer);
        uint128 amount = uint128(_word(number, 2));
        vm.prank(sender);
        disputes.endReward(number);
        assert(amount > 0 && b.open == 0 && uint128(_word(number, 2)) == 0);
        (uint256 tokens, uint256 coins) = _payerGained(asked, b);
        assert(tokens + (disputes.lost() - b.lost) == amount && coins == 0);
        assert(tokens == 0 || tokens == amount);
        _senderHas(sender, b);
    }

    function fails_end_reward() public {
        (Challenge memory asked, address sender) = _challenge();
        uint256 number = svm.createUint(256, "reward");
        Before memory b = _before(asked, sender);
        disputes.endReward(number);
        assert(disputes.lost() == b.lost);
    }
}
