// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Status} from "../../src/interfaces/IDisputes.sol";
import {SignedReceipt} from "../../src/interfaces/IEvidenceVerifier.sol";
import {WorkerView} from "../../src/interfaces/IWorkerRegistry.sol";
import {OpenedLeaf} from "../../src/libraries/TraceLeaves.sol";
import {TraceProof, TraceRule} from "../../src/libraries/TraceRules.sol";
import {DisputesHandler} from "./DisputesHandler.sol";
import {ServedJobs} from "./ServedJobs.sol";
import {Trace, TraceBuilder} from "./TraceBuilder.sol";

/// @notice A careless worker is silent, answers late, leaves and comes back, cheats and is convicted. The committee
/// judges it rightly or wrongly. What each event may take and pay is computed here a second time.
contract CarelessHandler is ServedJobs {
    uint256 private constant _KEY = 0xCA7E;
    uint256 private constant _TRACE = 6;
    uint128 private constant _REWARD = 20 * PROVING_COST;

    struct Waiting {
        uint256 number;
        uint256 amount;
        uint256 upheld;
    }

    DisputesHandler private _honest;
    address private _honestOperator;
    mapping(uint64 registration => bool) private _convicted;
    mapping(uint64 registration => uint256) private _slashedOf;
    uint256 private _seenSlashed;
    Waiting[] private _waiting;
    uint256 private _lastReward;
    uint256 private _upheld;
    /// @notice Silences by the time at which their answers were due.
    uint64[] private _dueAt;
    uint128[] private _dueSlashed;

    /// @notice Base units that came in as stakes of this worker, went back to it, and went from the registry to Disputes.
    uint256 public staked;
    uint256 public returned;
    uint256 public pushed;
    uint256 public waitingHeld;

    // What must stay zero.
    uint256 public leftInsideAWindow;
    uint256 public goneInsideAWindow;
    uint256 public wrongWithdrawals;
    uint256 public wrongSlashes;
    uint256 public moreThanStaked;
    uint256 public wrongRewards;

    // What happened.
    uint256 public silences;
    uint256 public left;
    uint256 public refusedToLeave;
    uint256[7] public convictions;
    uint256[9] public ended;
    uint256 public rewardsPaid;
    uint256 public rewardsLost;

    /// @notice Works on what the honest worker's handler deployed.
    function join(DisputesHandler honest) external {
        _honest = honest;
        _honestOperator = operator;
        Shared memory s = honest.shared();
        (escrow, token, hashes) = (s.escrow, s.token, s.hashes);
        (verifier, disputes, registry) = (s.verifier, s.disputes, s.registry);
        makeCommittee();
        (operator, operatorKey) = (vm.addr(_KEY), _KEY);
        _register();
    }

    function _passTo(uint256 time) internal override {
        if (time <= block.timestamp) return;
        _honest.answerBefore(time);
        vm.warp(time);
    }

    // ------------------------------------------------------------------ registrations

    function _register() private {
        stakeFor(_KEY, STAKE);
        staked += STAKE;
    }

    function _stake() private view returns (uint128) {
        return _registration() == 0 ? 0 : stakeOf(operator);
    }

    /// @dev A worker that is leaving takes no jobs. One that left comes back.
    function _mayServe() internal override returns (bool) {
        uint64 registration = _registration();
        if (registration == 0) _register();
        if (_convicted[registration]) return false;
        return registry.getWorker(operator).unbondRequestedAt == 0;
    }

    function unbond(bool back) public {
        if (_registration() == 0) return;
        bool leaving = registry.getWorker(operator).unbondRequestedAt != 0;
        if (leaving && !back) return;
        vm.prank(operator);
        if (leaving) registry.cancelUnbond(operator);
        else registry.requestUnbond(operator);
    }

    /// @dev Whether something about this registration is still to be decided.
    function _isInsideAWindow(uint64 registration) private view returns (bool) {
        for (uint256 i = 0; i < _questions.length; ++i) {
            Question storage q = _questions[i];
            if (q.registration != registration) continue;
            bool undecided = q.status == Status.Open || q.status == Status.Escalated;
            if (undecided && block.timestamp <= q.answerBy + DAY) return true;
            bool open = q.status == Status.Answered && q.asked.leaf > 0;
            if (open && block.timestamp <= q.answerBy + 12 hours) return true;
        }
        return false;
    }

    function withdraw(uint64 wait) public {
        uint64 registration = _registration();
        if (registration == 0) return;
        if (registry.getWorker(operator).unbondRequestedAt == 0) unbond(false);
        _passTo(block.timestamp + bound(wait, 0, 8 * DAY));
        WorkerView memory w = registry.getWorker(operator);
        bool due = block.timestamp >= w.unbondRequestedAt + 7 * DAY && block.timestamp >= w.frozenUntil;
        uint256 before = token.balanceOf(operator);
        vm.prank(operator);
        try registry.withdrawStake(operator) {
            uint256 got = token.balanceOf(operator) - before;
            if (!due || got != STAKE - _slashedOf[registration]) ++wrongWithdrawals;
            if (_isInsideAWindow(registration)) ++leftInsideAWindow;
            returned += got;
            ++left;
        } catch {
            if (due) ++wrongWithdrawals;
            ++refusedToLeave;
        }
    }

    /// @dev Everything that left the stakes of this worker belongs to the registration it had then.
    function _account(uint64 registration) private {
        uint256 slashed = slashedInAll();
        _slashedOf[registration] += slashed - _seenSlashed;
        _seenSlashed = slashed;
        if (_slashedOf[registration] > (registration == 0 ? 0 : STAKE)) ++moreThanStaked;
    }

    // ------------------------------------------------------------------ jobs and questions

    function serve(uint128 amount, uint256 pins) external {
        if (_mayServe()) _serveFor(amount, pins);
    }

    /// @dev A silence and a verdict take more for a dearer receipt.
    function _serveFor(uint128 amount, uint256 pins) private returns (uint256 job) {
        job = _serve(0, 1, 2, pins, 1, 1);
        SignedReceipt memory signed = _served[job].signed[0];
        signed.receipt.amount = uint128(bound(amount, 0, 1_200_000));
        _served[job].signed[0] = signReceipt(signed.receipt);
    }

    /// @dev About one of the latest jobs.
    function question(uint256 which, uint32 leaf, uint8 fields, bool byPayer) external {
        uint256 count = _served.length;
        if (count == 0) return;
        uint256 job = count - 1 - which % (count < 4 ? count : 4);
        if (!_convicted[_served[job].registration]) _askInTime(job, leaf, fields, byPayer);
    }

    /// @dev A job that was taken before the worker asked to leave can be challenged while its stake is there.
    function _askInTime(uint256 job, uint32 leaf, uint8 fields, bool byPayer) private returns (bool) {
        if (block.timestamp > _served[job].subject.job.deadline + 3 * DAY) return false;
        if (_registration() != _served[job].registration) {
            ++goneInsideAWindow;
            return false;
        }
        return _ask(job, 0, leaf, fields, byPayer);
    }

    /// @dev Several at once, now and then so many that some wait in line.
    function flood(uint8 jobs_, uint64 wait) public {
        if (!_mayServe()) return;
        uint256 first = _served.length;
        uint256 count = jobs_ % 8 == 0 ? 17 : 1 + jobs_ % 3;
        for (uint256 i = 0; i < count; ++i) {
            _serve(0, 1, 1, 0, 1, 0);
        }
        if (wait % 2 == 0) unbond(false);
        _passTo(block.timestamp + bound(wait, 0, 4 * DAY));
        for (uint256 i = 0; i < count; ++i) {
            _askInTime(first + i, 1, 1, true);
        }
    }

    function answer(uint256 from, bool late) public {
        (bool found, uint256 i) = late
            ? _find(Status.Silent, from, 0, type(uint64).max)
            : _find(Status.Open, from, block.timestamp, type(uint64).max);
        if (!found) return;
        _answer(i);
        ++ended[uint256(_questions[i].status)];
    }

    function conclude(uint256 from, uint64 wait) public {
        (bool found, uint256 i) = _find(Status.Open, from, 0, type(uint64).max);
        if (!found) return;
        _passTo(_questions[i].answerBy + 1 + bound(wait, 0, 12 hours));
        _beSilent(i);
    }

    function _beSilent(uint256 i) private {
        Question storage q = _questions[i];
        (uint64 registration, uint128 before) = (_registration(), _stake());
        bool inTime = block.timestamp <= q.answerBy + DAY;
        if (inTime && registration != q.registration) ++goneInsideAWindow;
        disputes.conclude(q.asked);
        bondsHeld -= disputes.requiredBond();
        q.status = Status.Silent;
        ++_upheld;
        ++silences;
        uint128 taken = before - _stake();
        uint256 most = 1000 * uint256(q.asked.amount) + _REWARD;
        if (taken > most || taken > before / 10) ++wrongSlashes;
        if (registration != q.registration && taken > 0) ++wrongSlashes;
        _dueAt.push(q.answerBy);
        _dueSlashed.push(taken);
        _account(registration);
    }

    // ------------------------------------------------------------------ verdicts and convictions

    /// @dev Right or wrong, in time or not at all.
    function verdict(uint256 from, bool guilty, bool judged, uint64 wait) public {
        (bool found, uint256 i) = _escalated(from);
        if (!found) return;
        uint256 latest = _questions[i].answerBy + DAY;
        if (judged) {
            _passTo(bound(wait, block.timestamp, latest));
            _beJudged(i, guilty);
        } else {
            _passTo(latest + 1);
            _endWithoutVerdict(i);
        }
        ++ended[uint256(_questions[i].status)];
    }

    function _beJudged(uint256 i, bool guilty) private {
        Question storage q = _questions[i];
        (uint64 registration, uint128 before) = (_registration(), _stake());
        if (registration != q.registration) ++goneInsideAWindow;
        _judge(i, guilty);
        uint256 slashed = 0;
        if (guilty) {
            ++_upheld;
            slashed = 1000 * uint256(q.asked.amount);
            if (slashed < before / 10) slashed = before / 10;
            if (slashed > before) slashed = before;
            uint256 fees = 2 * (slashed / 2 < VERDICT_FEE ? slashed / 2 : VERDICT_FEE);
            _expectReward(slashed / 10 < slashed - fees ? slashed / 10 : slashed - fees);
        }
        if (before - _stake() != slashed) ++wrongSlashes;
        _account(registration);
    }

    /// @dev The cap is twenty costs. A reward waits while other challenges are open.
    function _expectReward(uint256 reward) private {
        if (reward > _REWARD) reward = _REWARD;
        if (reward == 0 || disputes.openCount(operator) == 0) return;
        _waiting.push(Waiting(++_lastReward, reward, _upheld));
        waitingHeld += reward;
    }

    /// @dev The same accusations that never hold against the honest worker, over evidence with one number changed.
    function convict(uint8 rule) public {
        if (_registration() == 0) _register();
        (uint64 registration, uint128 before) = (_registration(), stakeOf(operator));
        if (before == 0) return;
        uint256 chosen = bound(rule, 0, _TRACE);
        uint256 job = _serve(0, 1, 2, 1, 2, 1);
        disputes.prove(chosen == _TRACE ? _wrongTrace(job) : _wrongReceipts(job, chosen));
        _convicted[registration] = true;
        ++convictions[chosen];
        _expectReward(before / 10);
        if (stakeOf(operator) != 0) ++wrongSlashes;
        _account(registration);
    }

    function _wrongReceipts(uint256 job, uint256 rule) private view returns (bytes memory) {
        Served storage made = _served[job];
        (SignedReceipt memory one, SignedReceipt memory other) = (made.signed[0], made.signed[1]);
        if (rule == EQUIVOCATION) other = made.signed[0];
        if (rule == EQUIVOCATION) ++other.receipt.units;
        if (rule == CHAIN) ++other.receipt.totalSteps;
        if (rule == BEGINNING) ++one.receipt.totalUnits;
        if (rule == EXCESS) one.receipt.steps = 5;
        if (rule == OVERCHARGE) ++one.receipt.totalAmount;
        return _accusation(rule, made.subject, signReceipt(one.receipt), signReceipt(other.receipt), 322);
    }

    function _wrongTrace(uint256 job) private view returns (bytes memory) {
        Served storage made = _served[job];
        Trace memory trace = _traceOf(made, 0);
        trace.fields[0][1] = new bytes(8);
        SignedReceipt memory signed = made.signed[0];
        signed.receipt.traceRoot = TraceBuilder.root(trace);
        TraceProof memory proof;
        proof.rule = TraceRule.CanvasLeaf;
        proof.leaves = new OpenedLeaf[](1);
        proof.leaves[0] = TraceBuilder.open(trace, 0, 0x3f);
        return traceProof(made.subject, signReceipt(signed.receipt), proof);
    }

    // ------------------------------------------------------------------ payouts

    function endReward() public {
        uint256 count = _waiting.length;
        if (count == 0) return;
        Waiting memory w = _waiting[count - 1];
        (uint256 before,) = disputes.creditsOf(payer);
        uint256 lost = disputes.lost();
        if (disputes.openCount(operator) > 0) {
            try disputes.endReward(w.number) {
                ++wrongRewards;
            } catch {}
            return;
        }
        disputes.endReward(w.number);
        _waiting.pop();
        waitingHeld -= w.amount;
        (uint256 credited,) = disputes.creditsOf(payer);
        bool paid = w.upheld == _upheld;
        if (credited - before != (paid ? w.amount : 0)) ++wrongRewards;
        if (disputes.lost() - lost != (paid ? 0 : w.amount)) ++wrongRewards;
        if (paid) ++rewardsPaid;
        else ++rewardsLost;
    }

    function _party(uint256 index) private view returns (address) {
        if (index < 3) return vm.addr(memberKeys[index]);
        if (index == 3) return payer;
        if (index == 4) return authorizer;
        return index == 5 ? operator : _honestOperator;
    }

    function push(uint8 index) public {
        address who = _party(bound(index, 0, 6));
        (uint256 tokens, uint256 coins_) = disputes.creditsOf(who);
        if (tokens + coins_ == 0) return;
        uint256 before = registry.rewardOf(address(disputes));
        disputes.pushCredits(who);
        pushed += before - registry.rewardOf(address(disputes));
    }

    // ------------------------------------------------------------------ the end of a sequence

    /// @notice Does everything once more, so that no action is one that never succeeds.
    function finish() external {
        _endAll();
        _comeBack();
        _finishVerdicts();
        _finishLine();
        for (uint8 rule = 0; rule <= _TRACE; ++rule) {
            _finishConviction(rule);
        }
    }

    /// @notice Ends what is open, and sends every unit home.
    function close() external {
        _endAll();
        for (uint8 i = 0; i < 7; ++i) {
            push(i);
        }
        uint256 kept = token.balanceOf(address(disputes)) + registry.rewardOf(address(disputes));
        vm.assertEq(kept, disputes.lost(), "every token but lost rewards is home");
        vm.assertEq(address(disputes).balance, 0, "every coin is home");
    }

    /// @dev A silence and its late answer; guilty, not guilty and no verdict.
    function _finishVerdicts() private {
        _ask(_serveFor(1000, 3), 0, 1, ALL_STEP, true);
        uint256 last = _questions.length - 1;
        conclude(last, 0);
        answer(last, true);
        verdict(last, true, true, 0);
        verdict(last, false, true, 1);
        verdict(last, false, false, 2);
        for (uint256 status = uint256(Status.Late); status <= uint256(Status.NoVerdict); ++status) {
            if (status == uint256(Status.Escalated)) continue;
            vm.assertTrue(ended[status] > 0, "late, guilty, not guilty, no verdict");
        }
        vm.assertTrue(silences > 0, "silent");
    }

    /// @dev The worker asks to leave at once. The last of its questions are still open when it could.
    function _finishLine() private {
        (uint256 before, uint256 refused) = (left, refusedToLeave);
        uint64 leaving = uint64(block.timestamp);
        flood(16, uint64(4 * DAY));
        _passTo(leaving + 7 * DAY);
        withdraw(0);
        vm.assertEq(refusedToLeave, refused + 1, "frozen behind its unbonding");
        _endAll();
        _comeBack();
        vm.assertEq(left, before + 1, "free behind its windows");
    }

    /// @dev A reward that waits is paid when the other challenge is answered, and lost when it is upheld.
    function _finishConviction(uint8 rule) private {
        (uint256 before, uint256 paid, uint256 lost) = (convictions[rule], rewardsPaid, rewardsLost);
        _ask(_serveFor(1000, 3), 0, 1, 1, false);
        unbond(false);
        convict(rule);
        endReward();
        if (rule % 2 == 0) answer(_questions.length - 1, false);
        else conclude(_questions.length - 1, 0);
        endReward();
        vm.assertEq(convictions[rule], before + 1, "convicted");
        vm.assertEq(rewardsPaid, paid + (rule % 2 == 0 ? 1 : 0), "paid");
        vm.assertEq(rewardsLost, lost + (rule % 2 == 0 ? 0 : 1), "lost");
        _comeBack();
    }

    function _endAll() private {
        for (uint256 i = 0; i < _questions.length; ++i) {
            Question storage q = _questions[i];
            if (q.status == Status.Open) {
                _passTo(q.answerBy + 1);
                _beSilent(i);
            } else if (q.status == Status.Escalated) {
                _passTo(q.answerBy + DAY + 1);
                _endWithoutVerdict(i);
            }
        }
        while (_waiting.length > 0) endReward();
    }

    function _comeBack() private {
        if (_registration() != 0) {
            WorkerView memory w = registry.getWorker(operator);
            if (w.unbondRequestedAt == 0) unbond(false);
            uint64 due = registry.getWorker(operator).unbondRequestedAt + 7 * DAY;
            _passTo(due > w.frozenUntil ? due : w.frozenUntil);
            withdraw(0);
        }
        _register();
    }

    // ------------------------------------------------------------------ what must hold

    function slashedInAll() public view returns (uint256) {
        return registry.forfeited() + registry.rewardOf(address(disputes)) + pushed;
    }

    /// @notice What the registry holds, what it owes, and what came in and did not go out.
    function stakes() external view returns (uint256 held, uint256 owed, uint256 inside) {
        held = token.balanceOf(address(registry));
        owed =
            stakeOf(_honestOperator) + _stake() + registry.forfeited() + registry.rewardOf(address(disputes));
        inside = STAKE + staked - returned - pushed;
    }

    /// @notice What Disputes holds in both currencies, and what it owes.
    function credits()
        external
        view
        returns (uint256 tokens, uint256 owedTokens, uint256 coins, uint256 owedCoins)
    {
        tokens = token.balanceOf(address(disputes)) + registry.rewardOf(address(disputes));
        coins = address(disputes).balance;
        owedTokens = disputes.lost() + waitingHeld + escalationsHeld + _honest.escalationsHeld();
        owedCoins = bondsHeld + _honest.bondsHeld();
        for (uint256 i = 0; i < 7; ++i) {
            (uint256 a, uint256 b) = disputes.creditsOf(_party(i));
            (owedTokens, owedCoins) = (owedTokens + a, owedCoins + b);
        }
    }

    /// @notice The most that silences due within 24 hours took, and a tenth of the stake before them.
    function worstDay() external view returns (uint256 worst, uint256 tenth) {
        tenth = STAKE / 10;
        for (uint256 i = 0; i < _dueAt.length; ++i) {
            uint256 sum = 0;
            for (uint256 j = 0; j < _dueAt.length; ++j) {
                if (_dueAt[j] >= _dueAt[i] && _dueAt[j] - _dueAt[i] <= DAY) sum += _dueSlashed[j];
            }
            if (sum > worst) worst = sum;
        }
    }
}
