// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

/// @notice What an audit of one receipt found, as the auditor signs it under the escrow's domain.
/// @param receipt digest of the receipt
/// @param level 0 rules, 1 replay, 2 forced
/// @param outcome 0 pass, 1 fail, 2 no verdict
/// @param rule number of the rule that failed, 0 for none
/// @param step the step that was judged
/// @param score what was measured, in the unit of the rule
/// @param threshold what the score was held against
/// @param evidence digest of the evidence file
/// @param profile digest of the auditor's engine profile
struct AuditReport {
    bytes32 receipt;
    uint8 level;
    uint8 outcome;
    uint16 rule;
    uint32 step;
    uint64 score;
    uint64 threshold;
    bytes32 evidence;
    bytes32 profile;
}

/// @notice The vote of one committee member, under the domain ("Piecework Disputes", "2") of a dispute contract.
/// @param challenge the challenge that is judged
/// @param guilty whether the operator broke the rule
/// @param leafRoot root of the leaves that the member's replay gave
/// @param deadline block time after which the vote is void
struct Verdict {
    bytes32 challenge;
    bool guilty;
    bytes32 leafRoot;
    uint64 deadline;
}

/// @title EIP-712 hashes of audit reports and verdicts
library EvidenceTypes {
    string internal constant AUDIT_REPORT_TYPE =
        "AuditReport(bytes32 receipt,uint8 level,uint8 outcome,uint16 rule,uint32 step,uint64 score,uint64 threshold,bytes32 evidence,bytes32 profile)";
    string internal constant VERDICT_TYPE =
        "Verdict(bytes32 challenge,bool guilty,bytes32 leafRoot,uint64 deadline)";

    bytes32 internal constant AUDIT_REPORT_TYPEHASH = keccak256(bytes(AUDIT_REPORT_TYPE));
    bytes32 internal constant VERDICT_TYPEHASH = keccak256(bytes(VERDICT_TYPE));

    function hashAuditReport(AuditReport memory a) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                AUDIT_REPORT_TYPEHASH,
                a.receipt,
                a.level,
                a.outcome,
                a.rule,
                a.step,
                a.score,
                a.threshold,
                a.evidence,
                a.profile
            )
        );
    }

    function hashVerdict(Verdict memory v) internal pure returns (bytes32) {
        return keccak256(abi.encode(VERDICT_TYPEHASH, v.challenge, v.guilty, v.leafRoot, v.deadline));
    }
}
