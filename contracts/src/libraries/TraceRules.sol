// SPDX-License-Identifier: Apache-2.0
pragma solidity >=0.8.20;

import {MerkleProof} from "./MerkleProof.sol";
import {Philox} from "./Philox.sol";
import {Job, PieceworkTypes, Receipt} from "./PieceworkTypes.sol";
import {OpenedLeaf, TraceLeaves} from "./TraceLeaves.sol";

/// @notice What an honest trace never breaks, whatever the hardware.
enum TraceRule {
    CanvasLeaf,
    StepLeaf,
    Continuity,
    InitialCanvas,
    Renoise,
    Pinned,
    Output
}

/// @notice A pinned position under the `pinned` root of a canvas leaf.
/// @param index its place among the pinned positions
struct Pin {
    uint32 position;
    uint32 token;
    uint64 index;
    bytes32[] siblings;
}

/// @notice That a trace breaks a rule.
/// @param position the token position, where the rule is about one
/// @param leaves the opened leaves that the rule reads (TraceRules says which)
/// @param pinCount how many positions are pinned, as far as `pins` prove it
/// @param pins InitialCanvas: the pinned neighbours of `position`. Pinned: the pin itself
/// @param output Output: the bytes behind the output digest
struct TraceProof {
    TraceRule rule;
    uint32 position;
    OpenedLeaf[] leaves;
    uint64 pinCount;
    Pin[] pins;
    bytes output;
}

/// @title The exact rules of a trace
/// @notice Every function says whether the rule is broken, and reverts when the proof does not show it either way.
/// `applies` is the table that Python shares: tests/vectors/disputes.json holds both to it.
library TraceRules {
    uint8 internal constant TEXT = 0;
    uint8 internal constant READ = 1;
    uint8 internal constant CANCELLED = 3;
    /// @dev protocol/piecework_protocol/limits.py
    uint256 internal constant MAX_CANVAS_TOKENS = 1024;
    bytes32 private constant _EMPTY_ROOT = keccak256("");
    bytes32 private constant _NOTHING = sha256("");

    error RuleDoesNotApply(TraceRule rule, uint8 kind, uint8 finish);
    error WrongLeaves(TraceRule rule);
    error WrongPins();
    error NotTheOutput(bytes32 given, bytes32 signed);

    /// @notice Whether a rule holds for receipts of this kind and finish.
    function applies(TraceRule rule, uint8 kind, uint8 finish) internal pure returns (bool) {
        if (kind != TEXT && kind != READ) return false;
        if (rule == TraceRule.Continuity) return kind == TEXT;
        if (rule == TraceRule.Output) return kind == TEXT && finish != CANCELLED;
        return true;
    }

    /// @notice Whether `proof` shows that the trace of `receipt` breaks a rule.
    function broken(Job calldata job, Receipt calldata receipt, TraceProof calldata proof)
        internal
        pure
        returns (bool)
    {
        TraceRule rule = proof.rule;
        if (!applies(rule, job.kind, receipt.finish)) {
            revert RuleDoesNotApply(rule, job.kind, receipt.finish);
        }
        uint256 needed = rule == TraceRule.CanvasLeaf || rule == TraceRule.Output ? 1 : 2;
        if (proof.leaves.length != needed) revert WrongLeaves(rule);
        for (uint256 i = 0; i < needed; ++i) {
            TraceLeaves.requireIn(proof.leaves[i], receipt.traceRoot, uint64(receipt.steps) + 1);
        }
        if (rule == TraceRule.Output) return _output(receipt, proof);
        if (rule == TraceRule.Continuity) return _continuity(proof);
        // All others read the canvas leaf first.
        if (proof.leaves[0].index != 0) revert WrongLeaves(rule);
        if (rule == TraceRule.CanvasLeaf) return _canvasLeaf(job, receipt, proof.leaves[0]);
        if (proof.leaves[1].index == 0) revert WrongLeaves(rule);
        if (rule == TraceRule.StepLeaf) return _stepLeaf(receipt, proof);
        if (rule == TraceRule.InitialCanvas) return _initialCanvas(job, receipt, proof);
        if (rule == TraceRule.Renoise) return _renoise(job, receipt, proof);
        return _pinned(proof);
    }

    // ------------------------------------------------------------------ the rules

    /// @dev Leaves: the canvas leaf. Any opened field that is not the job's breaks the rule.
    function _canvasLeaf(Job calldata job, Receipt calldata receipt, OpenedLeaf calldata leaf)
        private
        pure
        returns (bool)
    {
        bytes calldata field = leaf.fields[TraceLeaves.CANVAS_HEADER];
        if (field.length > 0 && !_isCanvasHeader(field, receipt.canvas, job.kind)) return true;
        field = leaf.fields[TraceLeaves.SEED];
        if (field.length > 0) {
            if (field.length != 8 || TraceLeaves.uint64Of(field) != job.parameters.seed) return true;
        }
        bytes32 parameters = PieceworkTypes.hashParameters(job.parameters);
        if (_differs(leaf.fields[TraceLeaves.PARAMETERS], parameters)) return true;
        if (_differs(leaf.fields[TraceLeaves.CONTENT], job.content)) return true;
        return _hasWrongLength(leaf, TraceLeaves.PINNED, 32)
            || _hasWrongLength(leaf, TraceLeaves.PROMPT_TOKENS, 4) || _isEmpty(leaf);
    }

    /// @dev Leaves: the canvas leaf with its header, a step leaf. Any opened field of the step that is of another
    /// form breaks the rule.
    function _stepLeaf(Receipt calldata receipt, TraceProof calldata proof) private pure returns (bool) {
        OpenedLeaf calldata step = proof.leaves[1];
        uint256 size = _size(proof.leaves[0]);
        bytes calldata field = step.fields[TraceLeaves.STEP_HEADER];
        if (field.length > 0) {
            if (field.length != TraceLeaves.STEP_HEADER_BYTES) return true;
            if (bytes16(field[0:16]) != TraceLeaves.STEP_TAG) return true;
            if (TraceLeaves.uint32At(field, 16) != receipt.canvas) return true;
            if (uint64(TraceLeaves.uint32At(field, 20)) + 1 != step.index) return true;
            if (TraceLeaves.uint32At(field, 24) != size) return true;
        }
        field = step.fields[TraceLeaves.ACCEPTED];
        if (field.length > 0) {
            if (field.length != (size + 7) / 8) return true;
            if (size % 8 != 0 && uint8(field[field.length - 1]) >> (size % 8) != 0) return true;
        }
        field = step.fields[TraceLeaves.SOFT];
        if (field.length > 0 && (field.length != 33 || field[0] < 0x01 || field[0] > 0x03)) return true;
        return _hasWrongLength(step, TraceLeaves.BEFORE, 4 * size)
            || _hasWrongLength(step, TraceLeaves.AFTER, 4 * size)
            || _hasWrongLength(step, TraceLeaves.ARGMAX, 4 * size)
            || _hasWrongLength(step, TraceLeaves.FINGERPRINT, 6 * size) || _isEmpty(step);
    }

    /// @dev Leaves: two step leaves that follow each other. The digests of their fields are enough.
    function _continuity(TraceProof calldata proof) private pure returns (bool) {
        (OpenedLeaf calldata first, OpenedLeaf calldata second) = (proof.leaves[0], proof.leaves[1]);
        if (first.index == 0 || second.index != first.index + 1) revert WrongLeaves(proof.rule);
        return first.digests[TraceLeaves.AFTER] != second.digests[TraceLeaves.BEFORE];
    }

    /// @dev Leaves: the canvas leaf with header and pinned, the leaf of step 0 with before. Pins: the neighbours.
    function _initialCanvas(Job calldata job, Receipt calldata receipt, TraceProof calldata proof)
        private
        pure
        returns (bool)
    {
        if (proof.leaves[1].index != 1) revert WrongLeaves(proof.rule);
        _requirePosition(proof);
        _requireNotPinned(proof);
        uint256 drawn = Philox.draw(job.parameters.seed, receipt.canvas, 0, proof.position, Philox.INITIAL);
        return _tokenAt(proof, TraceLeaves.BEFORE) != Philox.token(drawn, _vocabulary(proof.leaves[0]));
    }

    /// @dev Leaves: the canvas leaf with its header, a step leaf with accepted and after. A pinned position counts as
    /// accepted, so one that is not accepted needs no proof that it is not pinned.
    function _renoise(Job calldata job, Receipt calldata receipt, TraceProof calldata proof)
        private
        pure
        returns (bool)
    {
        _requirePosition(proof);
        if (_accepted(proof)) return false;
        uint32 step = uint32(proof.leaves[1].index - 1);
        uint256 drawn = Philox.draw(job.parameters.seed, receipt.canvas, step, proof.position, Philox.RENOISE);
        return _tokenAt(proof, TraceLeaves.AFTER) != Philox.token(drawn, _vocabulary(proof.leaves[0]));
    }

    /// @dev Leaves: the canvas leaf with header and pinned, a step leaf with what is wrong. Pins: the pin.
    function _pinned(TraceProof calldata proof) private pure returns (bool) {
        _requirePosition(proof);
        if (proof.pins.length != 1 || proof.pins[0].position != proof.position) revert WrongPins();
        _requirePin(proof, 0);
        OpenedLeaf calldata step = proof.leaves[1];
        uint32 token = proof.pins[0].token;
        for (uint256 field = TraceLeaves.BEFORE; field <= TraceLeaves.ARGMAX; ++field) {
            if (step.fields[field].length > 0 && _tokenAt(proof, field) != token) return true;
        }
        return step.fields[TraceLeaves.ACCEPTED].length > 0 && !_accepted(proof);
    }

    /// @dev Leaves: that of the last step with argmax. The charged tokens are those of the last argmax canvas in
    /// their order. A template leaves some of them out, so no more than that can be said without the content.
    function _output(Receipt calldata receipt, TraceProof calldata proof) private pure returns (bool) {
        OpenedLeaf calldata last = proof.leaves[0];
        if (last.index == 0 || last.index != receipt.steps) revert WrongLeaves(proof.rule);
        bytes calldata output = proof.output;
        bytes32 given = keccak256(abi.encodePacked(receipt.job, receipt.canvas, output));
        if (given != receipt.outputDigest) revert NotTheOutput(given, receipt.outputDigest);
        bytes calldata argmax = TraceLeaves.opened(last, TraceLeaves.ARGMAX);
        if (output.length < 4) return true;
        uint256 count = uint32(bytes4(output[0:4]));
        if (count > MAX_CANVAS_TOKENS || output.length < 4 + 4 * count) return true;
        uint256 place = 0;
        for (uint256 i = 0; i < count; ++i) {
            uint32 token = uint32(bytes4(output[4 + 4 * i:8 + 4 * i]));
            while (place + 4 <= argmax.length && TraceLeaves.uint32At(argmax, place) != token) place += 4;
            if (place + 4 > argmax.length) return true;
            place += 4;
        }
        return false;
    }

    // ------------------------------------------------------------------ pins

    /// @dev A path in the tree fixes its leaf by its turns alone. The turns of neighbouring indices lead to
    /// neighbouring leaves, and those of the first and last index to the first and last leaf. So `pinCount`
    /// needs no signature.
    function _requireNotPinned(TraceProof calldata proof) private pure {
        uint64 count = proof.pinCount;
        Pin[] calldata pins = proof.pins;
        if (count == 0) {
            bytes calldata root = TraceLeaves.opened(proof.leaves[0], TraceLeaves.PINNED);
            if (pins.length != 0 || root.length != 32 || bytes32(root) != _EMPTY_ROOT) revert WrongPins();
            return;
        }
        for (uint256 i = 0; i < pins.length; ++i) {
            _requirePin(proof, i);
        }
        if (pins.length == 2) {
            bool around = pins[0].position < proof.position && proof.position < pins[1].position;
            if (!around || pins[1].index != pins[0].index + 1) revert WrongPins();
            return;
        }
        if (pins.length != 1) revert WrongPins();
        bool before = pins[0].index == 0 && proof.position < pins[0].position;
        bool behind = pins[0].index == count - 1 && proof.position > pins[0].position;
        if (!before && !behind) revert WrongPins();
    }

    function _requirePin(TraceProof calldata proof, uint256 i) private pure {
        Pin calldata pin = proof.pins[i];
        bytes calldata root = TraceLeaves.opened(proof.leaves[0], TraceLeaves.PINNED);
        bytes32 leaf = sha256(abi.encodePacked(_little(pin.position), _little(pin.token)));
        bool held = root.length == 32
            && MerkleProof.verify(bytes32(root), leaf, pin.index, proof.pinCount, pin.siblings);
        if (!held) revert WrongPins();
    }

    function _little(uint32 value) private pure returns (uint32) {
        return (value >> 24) | ((value >> 8) & 0xff00) | ((value << 8) & 0xff0000) | (value << 24);
    }

    // ------------------------------------------------------------------ fields

    function _isCanvasHeader(bytes calldata field, uint32 canvas, uint8 kind) private pure returns (bool) {
        if (field.length != TraceLeaves.CANVAS_HEADER_BYTES) return false;
        if (bytes18(field[0:18]) != TraceLeaves.CANVAS_TAG) return false;
        uint32 size = TraceLeaves.uint32At(field, 22);
        return TraceLeaves.uint32At(field, 18) == canvas && size > 0 && size <= MAX_CANVAS_TOKENS
            && TraceLeaves.uint32At(field, 26) > 0 && uint8(field[30]) == kind;
    }

    function _differs(bytes calldata field, bytes32 expected) private pure returns (bool) {
        return field.length > 0 && (field.length != 32 || bytes32(field) != expected);
    }

    function _hasWrongLength(OpenedLeaf calldata leaf, uint256 field, uint256 expected)
        private
        pure
        returns (bool)
    {
        uint256 length = leaf.fields[field].length;
        return length > 0 && length != expected;
    }

    /// @dev A field of no bytes can never be opened, and no layout has one.
    function _isEmpty(OpenedLeaf calldata leaf) private pure returns (bool) {
        for (uint256 i = 0; i < leaf.digests.length; ++i) {
            if (leaf.digests[i] == _NOTHING) return true;
        }
        return false;
    }

    function _size(OpenedLeaf calldata canvas) private pure returns (uint256) {
        return TraceLeaves.uint32At(TraceLeaves.opened(canvas, TraceLeaves.CANVAS_HEADER), 22);
    }

    function _vocabulary(OpenedLeaf calldata canvas) private pure returns (uint32) {
        return TraceLeaves.uint32At(TraceLeaves.opened(canvas, TraceLeaves.CANVAS_HEADER), 26);
    }

    function _requirePosition(TraceProof calldata proof) private pure {
        if (proof.position >= _size(proof.leaves[0])) revert WrongLeaves(proof.rule);
    }

    function _accepted(TraceProof calldata proof) private pure returns (bool) {
        bytes calldata bitmap = TraceLeaves.opened(proof.leaves[1], TraceLeaves.ACCEPTED);
        return TraceLeaves.bitAt(bitmap, proof.position);
    }

    function _tokenAt(TraceProof calldata proof, uint256 field) private pure returns (uint32) {
        bytes calldata ids = TraceLeaves.opened(proof.leaves[1], field);
        return TraceLeaves.uint32At(ids, 4 * uint256(proof.position));
    }
}
