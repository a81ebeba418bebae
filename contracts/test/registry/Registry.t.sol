// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {TestToken} from "../../src/TestToken.sol";
import {IWorkerRegistry, Registration, WorkerView} from "../../src/interfaces/IWorkerRegistry.sol";
import {RegistrationTypes} from "../../src/libraries/RegistrationTypes.sol";
import {BlockListToken, BonusToken, FeeToken, ReentrantToken} from "../utils/Tokens.sol";
import {Deploy} from "../utils/Deploy.sol";

contract RegistryTest is Deploy {
    bytes32 internal constant PERMIT =
        keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
    uint256 internal constant OPERATOR_KEY = 0x09E8A708;
    uint256 internal constant FUNDER_KEY = 0xF0DE8;
    uint128 internal constant MIN_STAKE = 1_000_000;
    uint64 internal constant UNBONDING = 7 days;

    IWorkerRegistry internal registry;
    TestToken internal token;
    address internal operator = vm.addr(OPERATOR_KEY);
    address internal funder = vm.addr(FUNDER_KEY);
    address internal owner = address(0x0114E8);
    address internal payout = address(0xC01D);
    address internal stranger = address(0x57A46E8);

    function setUp() public {
        vm.warp(1_800_000_000);
        token = new TestToken();
        registry = newRegistry(address(token), MIN_STAKE, UNBONDING);
        _fund(funder);
        _fund(operator);
    }

    function _fund(address who) private {
        token.mint(who, 1e15);
        vm.prank(who);
        token.approve(address(registry), type(uint256).max);
    }

    function _registration() private view returns (Registration memory) {
        return Registration(
            operator,
            owner,
            payout,
            MIN_STAKE,
            "worker.example:7443",
            registry.registrationNonce(operator),
            uint64(block.timestamp)
        );
    }

    function _consent(uint256 key, Registration memory r) private view returns (bytes memory) {
        bytes32 structHash = RegistrationTypes.hashRegistration(r);
        (uint8 v, bytes32 r_, bytes32 s) =
            vm.sign(key, keccak256(abi.encodePacked(hex"1901", registry.DOMAIN_SEPARATOR(), structHash)));
        return abi.encodePacked(r_, s, v);
    }

    function _permit(Registration memory r) private view returns (bytes memory) {
        bytes32 structHash = keccak256(
            abi.encode(PERMIT, funder, address(registry), r.stake, token.nonces(funder), block.timestamp)
        );
        (uint8 v, bytes32 r_, bytes32 s) =
            vm.sign(FUNDER_KEY, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash)));
        return abi.encodePacked(r_, s, v);
    }

    function _join() private {
        Registration memory r = _registration();
        vm.prank(operator);
        registry.register(r, "");
    }

    /// @dev Registers the worker of one key, with its own address as owner.
    function _joinAs(uint256 key, uint128 stake) private returns (address who) {
        who = vm.addr(key);
        _fund(who);
        uint64 nonce = registry.registrationNonce(who);
        vm.prank(who);
        registry.register(Registration(who, who, who, stake, "w", nonce, uint64(block.timestamp)), "");
    }

    function _refuse(Registration memory r, bytes memory reason) private {
        vm.expectRevert(reason);
        vm.prank(operator);
        registry.register(r, "");
    }

    function _refuseConsent(Registration memory r, bytes memory signature) private {
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.OperatorDidNotConsent.selector, r.operator));
        vm.prank(funder);
        registry.register(r, signature);
    }

    function _leave() private {
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.UnbondRequested(operator, uint64(block.timestamp) + UNBONDING);
        vm.prank(owner);
        registry.requestUnbond(operator);
        vm.warp(block.timestamp + UNBONDING);
        vm.prank(owner);
        registry.withdrawStake(operator);
    }

    // ------------------------------------------------------------------ constructor

    function test_a_registry_without_token_minimum_or_sane_delay_is_refused() public {
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.BadParty.selector, stranger));
        newRegistry(stranger, MIN_STAKE, UNBONDING);
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.ZeroAmount.selector));
        newRegistry(address(token), 0, UNBONDING);
        _refuseDelay(180 days + 1);
        _refuseDelay(7 days - 1);
        _refuseDelay(0);
        newRegistry(address(token), MIN_STAKE, 180 days);
        newRegistry(address(token), MIN_STAKE, 7 days);
    }

    function _refuseDelay(uint64 delay) private {
        vm.expectRevert(
            abi.encodeWithSelector(IWorkerRegistry.UnbondingDelayOutOfRange.selector, delay, 7 days, 180 days)
        );
        newRegistry(address(token), MIN_STAKE, delay);
    }

    // ------------------------------------------------------------------ register

    function test_a_registration_with_a_missing_party_is_refused() public {
        bytes memory nobody = abi.encodeWithSelector(IWorkerRegistry.BadParty.selector, address(0));
        Registration memory r = _registration();
        r.operator = address(0);
        _refuse(r, nobody);
        r = _registration();
        r.owner = address(0);
        _refuse(r, nobody);
        r.owner = address(registry);
        _refuse(r, abi.encodeWithSelector(IWorkerRegistry.BadParty.selector, address(registry)));
        r = _registration();
        r.payout = address(0);
        _refuse(r, nobody);
    }

    function test_a_stake_below_the_minimum_is_refused() public {
        Registration memory r = _registration();
        r.stake = MIN_STAKE - 1;
        _refuse(r, abi.encodeWithSelector(IWorkerRegistry.StakeTooSmall.selector, MIN_STAKE - 1, MIN_STAKE));
    }

    function test_an_endpoint_of_no_or_too_many_bytes_is_refused() public {
        Registration memory r = _registration();
        r.endpoint = "";
        _refuse(r, abi.encodeWithSelector(IWorkerRegistry.BadEndpointLength.selector, 0, 256));
        r.endpoint = string(new bytes(257));
        _refuse(r, abi.encodeWithSelector(IWorkerRegistry.BadEndpointLength.selector, 257, 256));
        r.endpoint = string(new bytes(256));
        vm.prank(operator);
        registry.register(r, "");
    }

    function test_a_registration_without_the_operators_consent_is_refused() public {
        Registration memory r = _registration();
        _refuseConsent(r, "");
        _refuseConsent(r, _consent(FUNDER_KEY, r));
    }

    function test_a_consent_to_another_owner_is_refused() public {
        Registration memory r = _registration();
        bytes memory signature = _consent(OPERATOR_KEY, r);
        r.owner = funder;
        _refuseConsent(r, signature);
        r = _registration();
        r.payout = funder;
        _refuseConsent(r, signature);
        r = _registration();
        r.endpoint = "elsewhere.example:1";
        _refuseConsent(r, signature);
    }

    function test_a_consent_after_its_deadline_is_refused() public {
        Registration memory r = _registration();
        vm.warp(r.deadline + 1);
        _refuse(r, abi.encodeWithSelector(IWorkerRegistry.Expired.selector, r.deadline, r.deadline + 1));
    }

    function test_an_operator_registers_once() public {
        _join();
        _refuse(_registration(), abi.encodeWithSelector(IWorkerRegistry.AlreadyRegistered.selector, operator));
    }

    function test_a_stake_that_arrives_short_is_refused() public {
        FeeToken fee = new FeeToken();
        registry = newRegistry(address(fee), 100, UNBONDING);
        fee.mint(operator, 1000);
        vm.prank(operator);
        fee.approve(address(registry), 1000);
        Registration memory r = _registration();
        r.stake = 1000;
        _refuse(r, abi.encodeWithSelector(IWorkerRegistry.StakeMismatch.selector, 1000, 990));
    }

    function test_an_operator_registers_itself() public {
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.WorkerRegistered(operator, owner, payout, MIN_STAKE, "worker.example:7443", 1);
        _join();
        WorkerView memory worker = registry.getWorker(operator);
        vm.assertEq(worker.operator, operator, "operator");
        vm.assertEq(worker.owner, owner, "owner");
        vm.assertEq(worker.payout, payout, "payout");
        vm.assertEq(worker.stake, MIN_STAKE, "stake");
        vm.assertEq(worker.registeredAt, block.timestamp, "registered at");
        vm.assertEq(worker.unbondRequestedAt, 0, "unbond requested at");
        vm.assertEq(worker.endpoint, "worker.example:7443", "endpoint");
        vm.assertEq(worker.id, 1, "id");
        vm.assertEq(worker.nonce, 0, "nonce");
        vm.assertEq(worker.frozenUntil, 0, "frozen until");
        vm.assertEq(worker.offeredOwner, address(0), "offered owner");
        vm.assertTrue(worker.active && registry.isActive(operator), "active");
        vm.assertEq(token.balanceOf(address(registry)), MIN_STAKE, "held");
    }

    function test_anybody_registers_a_consenting_operator_and_the_owner_owns_the_stake() public {
        Registration memory r = _registration();
        bytes memory signature = _consent(OPERATOR_KEY, r);
        uint256 before = token.balanceOf(funder);
        vm.prank(funder);
        registry.register(r, signature);
        vm.assertEq(token.balanceOf(funder), before - MIN_STAKE, "funder pays");
        vm.assertEq(registry.getWorker(operator).owner, owner, "owner");
    }

    // ------------------------------------------------------------------ registerWithPermit

    function test_one_transaction_registers_with_permit() public {
        vm.prank(funder);
        token.approve(address(registry), 0);
        Registration memory r = _registration();
        bytes memory signature = _consent(OPERATOR_KEY, r);
        bytes memory permit = _permit(r);
        vm.prank(funder);
        registry.registerWithPermit(r, signature, block.timestamp, permit);
        vm.assertTrue(registry.isActive(operator), "active");
    }

    function test_a_front_run_stake_permit_still_registers() public {
        vm.prank(funder);
        token.approve(address(registry), 0);
        Registration memory r = _registration();
        bytes memory signature = _consent(OPERATOR_KEY, r);
        bytes memory permit = _permit(r);
        token.permit(funder, address(registry), r.stake, block.timestamp, permit);
        vm.prank(funder);
        registry.registerWithPermit(r, signature, block.timestamp, permit);
        vm.assertTrue(registry.isActive(operator), "active");
    }

    // ------------------------------------------------------------------ addStake

    function test_anybody_adds_stake_for_the_owner() public {
        _join();
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.StakeAdded(operator, funder, 5, MIN_STAKE + 5);
        vm.prank(funder);
        registry.addStake(operator, 5);
        _leave();
        vm.assertEq(token.balanceOf(owner), MIN_STAKE + 5, "owner");
    }

    function test_adding_nothing_or_to_a_leaving_worker_is_refused() public {
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.UnknownWorker.selector, operator));
        registry.addStake(operator, 5);
        _join();
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.ZeroAmount.selector));
        registry.addStake(operator, 0);
        vm.prank(owner);
        registry.requestUnbond(operator);
        vm.expectRevert(
            abi.encodeWithSelector(IWorkerRegistry.UnbondAlreadyRequested.selector, operator, block.timestamp)
        );
        vm.prank(funder);
        registry.addStake(operator, 5);
    }

    // ------------------------------------------------------------------ settings

    function test_only_the_owner_sets_payout_and_owner() public {
        _join();
        bytes memory reason = abi.encodeWithSelector(IWorkerRegistry.NotOwner.selector, operator, owner);
        vm.expectRevert(reason);
        vm.prank(operator);
        registry.setPayout(operator, stranger);
        vm.expectRevert(reason);
        vm.prank(operator);
        registry.offerOwner(operator, operator);
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.PayoutSet(operator, address(0xBEEF));
        vm.prank(owner);
        registry.setPayout(operator, address(0xBEEF));
        vm.assertEq(registry.getWorker(operator).payout, address(0xBEEF), "payout");
    }

    function test_an_owner_is_only_who_accepts() public {
        _join();
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.OwnerOffered(operator, funder);
        vm.prank(owner);
        registry.offerOwner(operator, funder);
        vm.assertEq(registry.getWorker(operator).owner, owner, "still the old owner");
        vm.assertEq(registry.getWorker(operator).offeredOwner, funder, "offered");
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.NotOfferedOwner.selector, stranger, funder));
        vm.prank(stranger);
        registry.acceptOwner(operator);
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.OwnerSet(operator, funder);
        vm.prank(funder);
        registry.acceptOwner(operator);
        vm.assertEq(registry.getWorker(operator).owner, funder, "the new owner");
        vm.assertEq(registry.getWorker(operator).offeredOwner, address(0), "the offer is used up");
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.NotOfferedOwner.selector, funder, address(0)));
        vm.prank(funder);
        registry.acceptOwner(operator);
    }

    function test_an_offer_of_ownership_can_be_taken_back_and_dies_with_the_registration() public {
        _join();
        vm.prank(owner);
        registry.offerOwner(operator, funder);
        vm.prank(owner);
        registry.offerOwner(operator, address(0));
        bytes memory reason =
            abi.encodeWithSelector(IWorkerRegistry.NotOfferedOwner.selector, funder, address(0));
        vm.expectRevert(reason);
        vm.prank(funder);
        registry.acceptOwner(operator);
        vm.prank(owner);
        registry.offerOwner(operator, funder);
        _leave();
        _join();
        vm.expectRevert(reason);
        vm.prank(funder);
        registry.acceptOwner(operator);
    }

    function test_owner_and_operator_set_the_endpoint() public {
        _join();
        vm.prank(operator);
        registry.setEndpoint(operator, "a:1");
        vm.assertEq(registry.getWorker(operator).endpoint, "a:1", "by the operator");
        vm.prank(owner);
        registry.setEndpoint(operator, "b:2");
        vm.assertEq(registry.getWorker(operator).endpoint, "b:2", "by the owner");
        vm.expectRevert(
            abi.encodeWithSelector(IWorkerRegistry.NotOwnerOrOperator.selector, stranger, owner, operator)
        );
        vm.prank(stranger);
        registry.setEndpoint(operator, "c:3");
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.BadEndpointLength.selector, 0, 256));
        vm.prank(owner);
        registry.setEndpoint(operator, "");
    }

    function test_a_registered_address_is_never_nobody() public {
        _join();
        bytes memory nobody = abi.encodeWithSelector(IWorkerRegistry.BadParty.selector, address(0));
        vm.expectRevert(nobody);
        vm.prank(owner);
        registry.setPayout(operator, address(0));
        vm.expectRevert(nobody);
        vm.prank(operator);
        registry.authorizeSessionKey(address(0), uint64(block.timestamp));
    }

    // ------------------------------------------------------------------ session keys

    function test_a_session_key_signs_until_its_time() public {
        vm.assertTrue(!registry.isSigner(operator, operator), "not registered yet");
        _join();
        uint64 until = uint64(block.timestamp) + 60;
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.SessionKeyAuthorized(operator, stranger, until);
        vm.prank(operator);
        registry.authorizeSessionKey(stranger, until);
        vm.warp(until);
        vm.assertTrue(registry.isSigner(operator, stranger), "until its time");
        vm.warp(until + 1);
        vm.assertTrue(!registry.isSigner(operator, stranger), "after its time");
        vm.assertTrue(registry.isSigner(operator, operator), "the operator itself");
        vm.assertTrue(!registry.isSigner(operator, owner), "not the owner");
    }

    function test_a_session_longer_than_the_maximum_or_in_the_past_is_refused() public {
        _join();
        uint64 present = uint64(block.timestamp);
        vm.expectRevert(
            abi.encodeWithSelector(
                IWorkerRegistry.SessionTooLong.selector, present + 30 days + 1, present + 30 days
            )
        );
        vm.prank(operator);
        registry.authorizeSessionKey(stranger, present + 30 days + 1);
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.Expired.selector, present - 1, present));
        vm.prank(operator);
        registry.authorizeSessionKey(stranger, present - 1);
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.UnknownWorker.selector, owner));
        vm.prank(owner);
        registry.authorizeSessionKey(stranger, present);
    }

    function test_a_revoked_session_key_signs_no_more() public {
        _join();
        vm.prank(operator);
        registry.authorizeSessionKey(stranger, uint64(block.timestamp) + 60);
        vm.prank(operator);
        registry.revokeSessionKey(operator, stranger);
        vm.assertTrue(!registry.isSigner(operator, stranger), "revoked");
    }

    function test_session_keys_die_with_the_registration() public {
        _join();
        vm.prank(operator);
        registry.authorizeSessionKey(stranger, uint64(block.timestamp) + 30 days);
        _leave();
        vm.assertTrue(!registry.isSigner(operator, stranger), "gone");
        _join();
        vm.assertTrue(!registry.isSigner(operator, stranger), "not revived");
    }

    // ------------------------------------------------------------------ leaving

    function test_only_the_owner_leaves() public {
        _join();
        bytes memory reason = abi.encodeWithSelector(IWorkerRegistry.NotOwner.selector, operator, owner);
        vm.expectRevert(reason);
        vm.prank(operator);
        registry.requestUnbond(operator);
        vm.expectRevert(reason);
        vm.prank(operator);
        registry.cancelUnbond(operator);
        vm.expectRevert(reason);
        vm.prank(operator);
        registry.withdrawStake(operator);
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.UnbondNotRequested.selector, operator));
        vm.prank(owner);
        registry.withdrawStake(operator);
    }

    function test_a_leaving_worker_is_inactive_but_still_named() public {
        _join();
        vm.prank(owner);
        registry.requestUnbond(operator);
        vm.assertTrue(!registry.isActive(operator), "inactive");
        vm.assertTrue(!registry.getWorker(operator).active, "inactive in the view");
        vm.assertTrue(registry.isSigner(operator, operator), "still answerable");
        vm.expectRevert(
            abi.encodeWithSelector(IWorkerRegistry.UnbondAlreadyRequested.selector, operator, block.timestamp)
        );
        vm.prank(owner);
        registry.requestUnbond(operator);
    }

    function test_leaving_can_be_cancelled() public {
        _join();
        vm.prank(owner);
        registry.requestUnbond(operator);
        vm.prank(owner);
        registry.cancelUnbond(operator);
        vm.assertTrue(registry.isActive(operator), "active again");
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.UnbondNotRequested.selector, operator));
        vm.prank(owner);
        registry.cancelUnbond(operator);
    }

    function test_the_stake_is_free_after_the_delay_and_goes_to_the_owner() public {
        _join();
        uint64 due = uint64(block.timestamp) + UNBONDING;
        vm.prank(owner);
        registry.requestUnbond(operator);
        vm.warp(due - 1);
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.StillBonded.selector, operator, due, due - 1));
        vm.prank(owner);
        registry.withdrawStake(operator);
        vm.warp(due);
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.StakeWithdrawn(operator, owner, MIN_STAKE);
        vm.prank(owner);
        registry.withdrawStake(operator);
        vm.assertEq(token.balanceOf(owner), MIN_STAKE, "owner");
        vm.assertEq(registry.workerCount(), 0, "count");
        vm.assertTrue(!registry.isSigner(operator, operator), "signs no more");
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.UnknownWorker.selector, operator));
        registry.getWorker(operator);
    }

    function test_a_worker_that_left_may_come_back() public {
        _join();
        _leave();
        _join();
        vm.assertTrue(registry.isActive(operator), "active");
        vm.assertEq(registry.workerCount(), 1, "count");
    }

    // ------------------------------------------------------------------ views

    function test_pages_cover_all_workers_once() public {
        for (uint256 key = 1; key <= 5; ++key) {
            _joinAs(key, MIN_STAKE);
        }
        vm.assertEq(registry.workerCount(), 5, "count");
        for (uint256 offset = 0; offset < 5; offset += 2) {
            WorkerView[] memory page = registry.workers(offset, 2);
            vm.assertEq(page.length, offset == 4 ? 1 : 2, "page length");
            for (uint256 i = 0; i < page.length; ++i) {
                vm.assertEq(page[i].operator, vm.addr(offset + i + 1), "operator");
            }
        }
    }

    function test_a_page_past_the_end_is_empty() public {
        _joinAs(1, MIN_STAKE);
        vm.assertEq(registry.workers(1, 10).length, 0, "past the end");
        vm.assertEq(registry.workers(type(uint256).max, type(uint256).max).length, 0, "far past the end");
        vm.assertEq(registry.workers(0, type(uint256).max).length, 1, "a limit without bound");
    }

    function test_the_last_worker_takes_the_place_of_the_one_that_left() public {
        address first = _joinAs(1, MIN_STAKE);
        _joinAs(2, MIN_STAKE);
        address third = _joinAs(3, MIN_STAKE);
        vm.prank(first);
        registry.requestUnbond(first);
        vm.warp(block.timestamp + UNBONDING);
        vm.prank(first);
        registry.withdrawStake(first);
        WorkerView[] memory page = registry.workers(0, 10);
        vm.assertEq(page.length, 2, "count");
        vm.assertEq(page[0].operator, third, "moved");
        vm.prank(third);
        registry.requestUnbond(third);
        vm.warp(block.timestamp + UNBONDING);
        vm.prank(third);
        registry.withdrawStake(third);
        vm.assertEq(registry.workers(0, 10)[0].operator, vm.addr(2), "the moved one leaves too");
    }

    function testFuzz_stakes_add_up_to_the_registrys_balance(uint64[5] memory stakes, uint8 leaving) public {
        uint256 sum = 0;
        for (uint256 i = 0; i < stakes.length; ++i) {
            uint128 stake = uint128(bound(stakes[i], MIN_STAKE, 1e14));
            address who = _joinAs(i + 1, stake);
            if ((leaving >> i) & 1 == 0) {
                sum += stake;
                continue;
            }
            vm.prank(who);
            registry.requestUnbond(who);
            vm.warp(block.timestamp + UNBONDING);
            vm.prank(who);
            registry.withdrawStake(who);
            vm.assertEq(token.balanceOf(who), 1e15, "all back");
        }
        vm.assertEq(token.balanceOf(address(registry)), sum, "held");
        uint256 listed = 0;
        WorkerView[] memory page = registry.workers(0, 10);
        for (uint256 i = 0; i < page.length; ++i) {
            listed += page[i].stake;
        }
        vm.assertEq(listed, sum, "listed");
    }

    // ------------------------------------------------------------------ consent (C9)

    function test_a_consent_is_good_once() public {
        Registration memory r = _registration();
        r.deadline = type(uint64).max;
        bytes memory signature = _consent(OPERATOR_KEY, r);
        vm.prank(funder);
        registry.register(r, signature);
        _leave();
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.WrongNonce.selector, 0, 1));
        vm.prank(funder);
        registry.register(r, signature);
        vm.assertEq(registry.registrationNonce(operator), 1, "nonce");
        _join();
        vm.assertEq(registry.getWorker(operator).nonce, 1, "the nonce of this registration");
        vm.assertEq(registry.getWorker(operator).id, 2, "its own number");
    }

    function test_a_nonce_of_the_future_is_refused() public {
        Registration memory r = _registration();
        r.nonce = 1;
        _refuse(r, abi.encodeWithSelector(IWorkerRegistry.WrongNonce.selector, 1, 0));
    }

    function test_the_owner_revokes_a_session_key_and_a_stranger_does_not() public {
        _join();
        vm.prank(operator);
        registry.authorizeSessionKey(stranger, uint64(block.timestamp) + 60);
        vm.expectRevert(
            abi.encodeWithSelector(IWorkerRegistry.NotOwnerOrOperator.selector, stranger, owner, operator)
        );
        vm.prank(stranger);
        registry.revokeSessionKey(operator, stranger);
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.SessionKeyRevoked(operator, stranger);
        vm.prank(owner);
        registry.revokeSessionKey(operator, stranger);
        vm.assertTrue(!registry.isSigner(operator, stranger), "revoked");
    }

    function test_a_stake_that_arrives_long_is_refused() public {
        BonusToken bonus = new BonusToken();
        bonus.mint(operator, 100);
        registry = newRegistry(address(bonus), 100, UNBONDING);
        vm.prank(operator);
        bonus.approve(address(registry), 100);
        Registration memory r = _registration();
        r.stake = 100;
        _refuse(r, abi.encodeWithSelector(IWorkerRegistry.StakeMismatch.selector, 100, 101));
    }

    // ------------------------------------------------------------------ slashing

    function test_only_the_deployer_freezes_and_slashes() public {
        _join();
        vm.assertEq(registry.slasher(), address(this), "slasher");
        bytes memory reason =
            abi.encodeWithSelector(IWorkerRegistry.NotSlasher.selector, owner, address(this));
        vm.expectRevert(reason);
        vm.prank(owner);
        registry.freeze(operator, uint64(block.timestamp));
        vm.expectRevert(reason);
        vm.prank(owner);
        registry.slash(operator, 1, owner);
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.UnknownWorker.selector, stranger));
        registry.freeze(stranger, uint64(block.timestamp));
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.UnknownWorker.selector, stranger));
        registry.slash(stranger, 1, owner);
    }

    function test_a_frozen_stake_stays_until_its_time() public {
        _join();
        vm.prank(owner);
        registry.requestUnbond(operator);
        vm.warp(block.timestamp + UNBONDING);
        uint64 until = uint64(block.timestamp) + 60;
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.StakeFrozen(operator, until);
        registry.freeze(operator, until);
        vm.assertEq(registry.getWorker(operator).frozenUntil, until, "in the view");
        vm.recordLogs();
        registry.freeze(operator, until);
        registry.freeze(operator, until - 30);
        vm.assertEq(vm.getRecordedLogs().length, 0, "an earlier end changes nothing");
        vm.warp(until - 1);
        vm.expectRevert(
            abi.encodeWithSelector(IWorkerRegistry.StillFrozen.selector, operator, until, until - 1)
        );
        vm.prank(owner);
        registry.withdrawStake(operator);
        vm.warp(until);
        vm.prank(owner);
        registry.withdrawStake(operator);
        vm.assertEq(token.balanceOf(owner), MIN_STAKE, "owner");
    }

    function test_a_freeze_has_a_longest_time_and_dies_with_the_registration() public {
        _join();
        uint256 latest = block.timestamp + 30 days;
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.FreezeTooLong.selector, latest + 1, latest));
        registry.freeze(operator, uint64(latest) + 1);
        registry.freeze(operator, uint64(latest));
        vm.prank(owner);
        registry.requestUnbond(operator);
        vm.warp(latest);
        vm.prank(owner);
        registry.withdrawStake(operator);
        _join();
        vm.assertEq(registry.getWorker(operator).frozenUntil, 0, "not frozen");
    }

    function test_a_slash_goes_to_its_payee_and_makes_the_worker_inactive() public {
        _join();
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.StakeSlashed(operator, stranger, 10, MIN_STAKE - 10);
        registry.slash(operator, 10, stranger);
        vm.assertEq(registry.getWorker(operator).stake, MIN_STAKE - 10, "stake");
        vm.assertTrue(!registry.isActive(operator), "inactive");
        vm.assertEq(registry.rewardOf(stranger), 10, "waits");
        vm.expectEmit(address(registry));
        emit IWorkerRegistry.RewardPushed(stranger, 10);
        vm.prank(funder);
        registry.pushReward(stranger);
        vm.assertEq(token.balanceOf(stranger), 10, "payee");
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.NothingToPush.selector, stranger));
        registry.pushReward(stranger);
        vm.prank(funder);
        registry.addStake(operator, 10);
        vm.assertTrue(registry.isActive(operator), "active with the minimum again");
    }

    function test_a_forfeited_stake_belongs_to_nobody() public {
        _join();
        registry.slash(operator, MIN_STAKE, address(0));
        vm.assertEq(registry.forfeited(), MIN_STAKE, "counted");
        vm.assertEq(registry.rewardOf(address(0)), 0, "no reward");
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.NothingToPush.selector, address(0)));
        registry.pushReward(address(0));
        _leave();
        vm.assertEq(token.balanceOf(owner), 0, "nothing is left");
        vm.assertEq(token.balanceOf(address(registry)), MIN_STAKE, "held");
    }

    function test_a_slash_of_nothing_too_much_or_to_the_registry_is_refused() public {
        _join();
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.ZeroAmount.selector));
        registry.slash(operator, 0, stranger);
        vm.expectRevert(
            abi.encodeWithSelector(IWorkerRegistry.StakeTooSmall.selector, MIN_STAKE, MIN_STAKE + 1)
        );
        registry.slash(operator, MIN_STAKE + 1, stranger);
        vm.expectRevert(abi.encodeWithSelector(IWorkerRegistry.BadParty.selector, address(registry)));
        registry.slash(operator, 1, address(registry));
    }

    function test_a_block_list_cannot_stop_a_slash() public {
        BlockListToken strict = new BlockListToken();
        strict.mint(operator, MIN_STAKE);
        registry = newRegistry(address(strict), MIN_STAKE, UNBONDING);
        vm.prank(operator);
        strict.approve(address(registry), MIN_STAKE);
        _join();
        strict.setBlocked(stranger, true);
        registry.slash(operator, 10, stranger);
        vm.expectRevert();
        registry.pushReward(stranger);
        strict.setBlocked(stranger, false);
        registry.pushReward(stranger);
        vm.assertEq(strict.balanceOf(stranger), 10, "payee");
    }

    /// @dev The token calls in the middle of the transfer that pays the stake out.
    function test_no_function_that_moves_stake_can_be_reentered() public {
        bytes[] memory inner = new bytes[](5);
        inner[0] = abi.encodeCall(IWorkerRegistry.withdrawStake, (operator));
        inner[1] = abi.encodeCall(IWorkerRegistry.pushReward, (stranger));
        inner[2] = abi.encodeCall(IWorkerRegistry.addStake, (operator, 1));
        inner[3] = abi.encodeCall(IWorkerRegistry.register, (_registration(), ""));
        inner[4] = abi.encodeCall(IWorkerRegistry.registerWithPermit, (_registration(), "", 0, ""));
        for (uint256 i = 0; i < inner.length; ++i) {
            for (uint256 outer = 0; outer < 4; ++outer) {
                ReentrantToken evil = new ReentrantToken();
                evil.mint(operator, 2 * MIN_STAKE);
                registry = newRegistry(address(evil), MIN_STAKE, UNBONDING);
                vm.prank(operator);
                evil.approve(address(registry), type(uint256).max);
                if (outer != 0) _join();
                _performWith(outer, evil, inner[i]);
                vm.assertTrue(evil.called(), "the token was called");
                vm.assertEq(
                    bytes32(evil.reason()),
                    bytes32(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector),
                    "refused by the guard"
                );
            }
        }
    }

    function _performWith(uint256 outer, ReentrantToken evil, bytes memory call) private {
        if (outer == 0) {
            evil.arm(address(registry), call);
            _join();
        }
        if (outer == 1) {
            evil.arm(address(registry), call);
            vm.prank(operator);
            registry.addStake(operator, 5);
        }
        if (outer == 2) {
            registry.slash(operator, 5, stranger);
            evil.arm(address(registry), call);
            registry.pushReward(stranger);
        }
        if (outer == 3) {
            vm.prank(owner);
            registry.requestUnbond(operator);
            vm.warp(block.timestamp + UNBONDING);
            evil.arm(address(registry), call);
            vm.prank(owner);
            registry.withdrawStake(operator);
        }
    }
}
