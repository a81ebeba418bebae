// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestToken} from "../../src/TestToken.sol";
import {DisputeTerms, IDisputes, Status} from "../../src/interfaces/IDisputes.sol";
import {
    Challenge,
    IEvidenceVerifier,
    JobOfChannel,
    SignedAcceptance,
    SignedReceipt
} from "../../src/interfaces/IEvidenceVerifier.sol";
import {IEscrow} from "../../src/interfaces/IEscrow.sol";
import {IWorkerRegistry, Registration} from "../../src/interfaces/IWorkerRegistry.sol";
import {EvidenceTypes, Verdict} from "../../src/libraries/EvidenceTypes.sol";
import {Channel, Job, Parameters, PieceworkTypes, Receipt} from "../../src/libraries/PieceworkTypes.sol";
import {OpenedLeaf} from "../../src/libraries/TraceLeaves.sol";
import {TraceProof, TraceRule} from "../../src/libraries/TraceRules.sol";
import {EscrowBase} from "../utils/EscrowBase.sol";
import {Hashes} from "../utils/Hashes.sol";
import {Trace, TraceBuilder} from "./TraceBuilder.sol";

/// @notice An escrow, disputes with their registry, a staked operator, a committee of three, and jobs with signed
/// receipts.
abstract contract DisputesBase is EscrowBase {
    uint128 internal constant STAKE = 1_000_000_000;
    uint128 internal constant PROVING_COST = 500_000;
    uint128 internal constant VERDICT_FEE = 2_000_000;
    uint96 internal constant MIN_BOND = 1e12;
    uint128 internal constant AMOUNT = 1_000;
    uint8 internal constant ALL_STEP = 0x7f;
    uint64 internal constant DAY = 1 days;

    /// @dev What is deployed, for a second contract that tests the same.
    struct Shared {
        IEscrow escrow;
        TestToken token;
        Hashes hashes;
        IEvidenceVerifier verifier;
        IDisputes disputes;
        IWorkerRegistry registry;
    }

    IEvidenceVerifier internal verifier;
    IDisputes internal disputes;
    IWorkerRegistry internal registry;
    uint256[] internal memberKeys;
    /// @dev Signs receipts and acceptances: the key of `operator`.
    uint256 internal operatorKey = OPERATOR_KEY;
    uint256 internal jobs;

    function setUp() public virtual override {
        super.setUp();
        makeCommittee();
        verifier = newVerifier(escrow);
        disputes = newDisputes(terms());
        registry = disputes.registry();
        stakeFor(OPERATOR_KEY, STAKE);
        vm.deal(payer, 100 ether);
        vm.deal(authorizer, 100 ether);
    }

    function terms() internal view returns (DisputeTerms memory) {
        address[] memory committee = new address[](memberKeys.length);
        for (uint256 i = 0; i < committee.length; ++i) {
            committee[i] = vm.addr(memberKeys[i]);
        }
        return DisputeTerms({
            verifier: verifier,
            stakeToken: address(token),
            minStake: 1_000_000,
            unbondingDelay: 7 days,
            provingCost: PROVING_COST,
            minBond: MIN_BOND,
            verdictFee: VERDICT_FEE,
            committee: committee,
            threshold: 2
        });
    }

    /// @dev Keys whose addresses ascend.
    function makeCommittee() internal {
        for (uint256 key = 0xC0; memberKeys.length < 3; ++key) {
            uint256 count = memberKeys.length;
            if (count == 0 || vm.addr(key) > vm.addr(memberKeys[count - 1])) memberKeys.push(key);
        }
    }

    function stakeFor(uint256 key, uint128 stake) internal {
        address who = vm.addr(key);
        token.mint(who, stake);
        vm.prank(who);
        token.approve(address(registry), stake);
        Registration memory r =
            Registration(who, who, who, stake, "w:1", registry.registrationNonce(who), SOON);
        vm.prank(who);
        registry.register(r, "");
    }

    function stakeOf(address who) internal view returns (uint128) {
        return registry.getWorker(who).stake;
    }

    // ------------------------------------------------------------------ jobs and receipts

    /// @dev Of a new channel each.
    function newJob(uint8 kind) internal returns (JobOfChannel memory subject) {
        subject.channel = channelOf(++jobs);
        subject.job = Job({
            channel: escrow.channelId(subject.channel),
            salt: bytes32(jobs),
            offer: keccak256("offer"),
            entry: 0,
            model: keccak256("model"),
            kind: kind,
            content: keccak256(abi.encode("content", jobs)),
            parameters: Parameters(uint64(uint256(keccak256(abi.encode(jobs)))), 64, 4, 1, 1, 1, 1, 0, 0),
            maxAmount: 100 * AMOUNT,
            deadline: uint64(block.timestamp + DAY),
            replyKey: keccak256("reply")
        });
    }

    function jobId(JobOfChannel memory subject) internal view returns (bytes32) {
        return digestOf(PieceworkTypes.hashJob(subject.job));
    }

    /// @dev The honest receipt of canvas 0.
    function receiptOf(JobOfChannel memory subject, Trace memory trace, uint8 finish)
        internal
        view
        returns (Receipt memory)
    {
        bytes32 id = jobId(subject);
        uint32 steps = uint32(trace.fields.length - 1);
        uint32 units = uint32(subject.job.kind == 0 ? trace.output.length : 0);
        bytes memory output = TraceBuilder.outputBytes(trace.output);
        bytes32 digest = keccak256(abi.encodePacked(id, uint32(0), output));
        bytes32 root = TraceBuilder.root(trace);
        return Receipt(id, 0, digest, root, steps, units, AMOUNT, finish, 321, units, steps, AMOUNT, id);
    }

    function signReceipt(Receipt memory receipt) internal view returns (SignedReceipt memory) {
        return SignedReceipt(receipt, signHash(operatorKey, PieceworkTypes.hashReceipt(receipt)));
    }

    function served(uint8 kind, uint8 finish, uint32 steps, uint256 pins)
        internal
        returns (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed)
    {
        subject = newJob(kind);
        trace = TraceBuilder.honest(subject.job, 0, steps, pins);
        signed = signReceipt(receiptOf(subject, trace, finish));
    }

    function acceptance(JobOfChannel memory subject, uint32 promptTokens, uint64 acceptedAt)
        internal
        view
        returns (SignedAcceptance memory)
    {
        bytes32 hash = PieceworkTypes.hashAcceptance(jobId(subject), promptTokens, acceptedAt);
        return SignedAcceptance(promptTokens, acceptedAt, signHash(operatorKey, hash));
    }

    // ------------------------------------------------------------------ calls

    function equivocation(JobOfChannel memory subject, SignedReceipt memory one, SignedReceipt memory other)
        internal
        pure
        returns (bytes memory)
    {
        return abi.encodeCall(IEvidenceVerifier.proveEquivocation, (subject, one, other));
    }

    function traceProof(JobOfChannel memory subject, SignedReceipt memory signed, TraceProof memory proof)
        internal
        pure
        returns (bytes memory)
    {
        return abi.encodeCall(IEvidenceVerifier.proveTrace, (subject, signed, proof));
    }

    /// @dev Convicts OPERATOR_KEY out of a channel of its own.
    function convict() internal {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 1, 1, 0);
        Receipt memory other = receiptOf(subject, trace, 2);
        disputes.prove(equivocation(subject, signed, signReceipt(other)));
    }

    function ask(JobOfChannel memory subject, SignedReceipt memory signed, uint32 leaf, uint8 fields)
        internal
        returns (bytes32 id, Challenge memory asked)
    {
        bytes memory question = abi.encodeCall(
            IEvidenceVerifier.ask, (subject.channel.payer, subject, signed, leaf, fields)
        );
        (asked,) = verifier.ask(subject.channel.payer, subject, signed, leaf, fields);
        uint256 bond = disputes.requiredBond();
        vm.prank(subject.channel.payer);
        id = disputes.challenge{value: bond}(question);
        vm.assertEq(id, disputes.challengeId(asked), "id");
    }

    /// @dev A challenge to open all of step 0 of an honest canvas.
    function challenged() internal returns (bytes32 id, Challenge memory asked, OpenedLeaf memory leaf) {
        (JobOfChannel memory subject, Trace memory trace, SignedReceipt memory signed) = served(0, 1, 2, 5);
        (id, asked) = ask(subject, signed, 1, ALL_STEP);
        leaf = TraceBuilder.open(trace, 1, ALL_STEP);
    }

    function vote(uint256 key, Verdict memory verdict) internal view returns (bytes memory) {
        bytes32 hash = EvidenceTypes.hashVerdict(verdict);
        return signDigest(key, keccak256(abi.encodePacked(hex"1901", disputes.DOMAIN_SEPARATOR(), hash)));
    }

    function votes(bytes32 id, bool guilty, uint64 deadline) internal view returns (bytes[] memory signed) {
        signed = new bytes[](2);
        for (uint256 i = 0; i < 2; ++i) {
            signed[i] = vote(memberKeys[i], Verdict(id, guilty, ROOT, deadline));
        }
    }

    function approveEscalation() internal {
        token.mint(payer, 3 * VERDICT_FEE);
        vm.prank(payer);
        token.approve(address(disputes), 3 * VERDICT_FEE);
    }

    // ------------------------------------------------------------------ state

    function expectStatus(bytes32 id, Status status) internal view {
        vm.assertEq(uint256(disputes.getChallenge(id).status), uint256(status), "status");
    }

    function expectCredits(address who, uint256 tokens, uint256 coins) internal view {
        (uint256 heldTokens, uint256 heldCoins) = disputes.creditsOf(who);
        vm.assertEq(heldTokens, tokens, "credited tokens");
        vm.assertEq(heldCoins, coins, "credited coins");
    }

    function later(uint64 seconds_) internal {
        vm.warp(block.timestamp + seconds_);
    }
}
