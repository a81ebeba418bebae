// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestToken} from "../../src/TestToken.sol";
import {IWorkerRegistry, Registration, WorkerView} from "../../src/interfaces/IWorkerRegistry.sol";
import {Deploy} from "../utils/Deploy.sol";

/// @notice Drives a registry through joins, leaves, slashes and changes of ownership of five workers. This contract is
/// the slasher.
contract RegistryHandler is Deploy {
    uint256 public constant WORKERS = 5;
    uint128 public constant MIN_STAKE = 1000;
    uint64 private constant UNBONDING = 7 days;

    IWorkerRegistry public registry;
    TestToken public token;
    /// @notice Everything that was ever staked, minus everything that went out.
    uint256 public inside;
    uint256 public early;
    mapping(uint256 => uint64) private _ids;
    uint256 public reused;

    constructor() {
        vm.warp(1_800_000_000);
        token = new TestToken();
        registry = newRegistry(address(token), MIN_STAKE, UNBONDING);
        token.mint(address(this), 1e18);
        token.approve(address(registry), type(uint256).max);
        for (uint256 i = 0; i < WORKERS; ++i) {
            token.mint(operatorOf(i), 1e18);
            vm.prank(operatorOf(i));
            token.approve(address(registry), type(uint256).max);
        }
    }

    function operatorOf(uint256 index) public pure returns (address) {
        return address(uint160(0x0BE8A708 + index % WORKERS));
    }

    function _ownerOf(uint256 index) private pure returns (address) {
        return address(uint160(0x0114E8 + index % 3));
    }

    function _known(uint256 index) private view returns (bool known, WorkerView memory worker) {
        try registry.getWorker(operatorOf(index)) returns (WorkerView memory found) {
            return (true, found);
        } catch {
            return (false, worker);
        }
    }

    function register(uint256 index, uint256 owner, uint128 stake) external {
        (bool known,) = _known(index);
        if (known) return;
        address operator = operatorOf(index);
        stake = uint128(bound(stake, MIN_STAKE, 1e6));
        uint64 nonce = registry.registrationNonce(operator);
        address payout = _ownerOf(owner);
        vm.prank(operator);
        registry.register(Registration(operator, payout, payout, stake, "w:1", nonce, type(uint64).max), "");
        inside += stake;
        uint64 id = registry.getWorker(operator).id;
        if (id <= _ids[index % WORKERS]) ++reused;
        _ids[index % WORKERS] = id;
    }

    function addStake(uint256 index, uint128 amount) external {
        (bool known, WorkerView memory worker) = _known(index);
        if (!known || worker.unbondRequestedAt != 0) return;
        amount = uint128(bound(amount, 1, 1e6));
        registry.addStake(worker.operator, amount);
        inside += amount;
    }

    function changeOwner(uint256 index, uint256 owner, bool accepted) external {
        (bool known, WorkerView memory worker) = _known(index);
        if (!known) return;
        vm.prank(worker.owner);
        registry.offerOwner(worker.operator, _ownerOf(owner));
        if (!accepted) return;
        vm.prank(_ownerOf(owner));
        registry.acceptOwner(worker.operator);
    }

    function unbond(uint256 index, bool back) external {
        (bool known, WorkerView memory worker) = _known(index);
        if (!known || back == (worker.unbondRequestedAt == 0)) return;
        vm.prank(worker.owner);
        if (back) registry.cancelUnbond(worker.operator);
        else registry.requestUnbond(worker.operator);
    }

    function withdrawStake(uint256 index, uint256 wait) external {
        vm.warp(block.timestamp + bound(wait, 0, UNBONDING));
        (bool known, WorkerView memory worker) = _known(index);
        if (!known) return;
        bool due = worker.unbondRequestedAt != 0 && block.timestamp >= worker.unbondRequestedAt + UNBONDING
            && block.timestamp >= worker.frozenUntil;
        uint256 before = token.balanceOf(worker.owner);
        vm.prank(worker.owner);
        try registry.withdrawStake(worker.operator) {
            if (!due || token.balanceOf(worker.owner) - before != worker.stake) ++early;
            inside -= worker.stake;
        } catch {
            if (due) ++early;
        }
    }

    function freeze(uint256 index, uint64 duration) external {
        (bool known, WorkerView memory worker) = _known(index);
        if (!known) return;
        registry.freeze(worker.operator, uint64(block.timestamp + bound(duration, 0, 3 days)));
        if (registry.getWorker(worker.operator).frozenUntil < worker.frozenUntil) ++early;
    }

    function slash(uint256 index, uint128 amount, uint256 payee) external {
        (bool known, WorkerView memory worker) = _known(index);
        if (!known || worker.stake == 0) return;
        amount = uint128(bound(amount, 1, worker.stake));
        registry.slash(worker.operator, amount, payee % 4 == 3 ? address(0) : _ownerOf(payee));
    }

    function pushReward(uint256 payee) external {
        uint256 amount = registry.rewardOf(_ownerOf(payee));
        if (amount == 0) return;
        registry.pushReward(_ownerOf(payee));
        inside -= amount;
    }

    function owed() external view returns (uint256 sum) {
        sum = registry.forfeited();
        for (uint256 i = 0; i < 3; ++i) {
            sum += registry.rewardOf(_ownerOf(i));
        }
        WorkerView[] memory page = registry.workers(0, WORKERS + 1);
        for (uint256 i = 0; i < page.length; ++i) {
            sum += page[i].stake;
        }
    }
}
