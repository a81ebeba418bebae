// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ChannelState, IEscrow} from "../src/interfaces/IEscrow.sol";
import {MerkleProof} from "../src/libraries/MerkleProof.sol";
import {Channel, Claim} from "../src/libraries/PieceworkTypes.sol";
import {MerkleTree} from "./utils/MerkleTree.sol";
import {EscrowBase} from "./utils/EscrowBase.sol";

/// @notice Acts on a canvas that was delivered and paid: a receipt under the root of a settled channel.
/// docs/contracts/examples.md explains it.
contract CanvasReader {
    IEscrow private immutable _ESCROW;

    error NothingSettled(bytes32 channelId);
    error NotUnderTheRoot(bytes32 receipt);

    constructor(IEscrow escrow) {
        _ESCROW = escrow;
    }

    /// @notice Base units that the channel has paid to its receiver so far.
    function paid(bytes32 channelId) public view returns (uint96) {
        ChannelState memory state = _ESCROW.getChannel(channelId);
        if (state.settled == 0) revert NothingSettled(channelId);
        return state.settled;
    }

    /// @notice Reverts unless `receipt` is number `index` of the `count` receipts under `root`.
    /// Take `root` and `count` from a Settled event of the channel, and hold them to the chain yourself.
    function check(bytes32 root, bytes32 receipt, uint64 index, uint64 count, bytes32[] calldata proof)
        external
        pure
    {
        if (!MerkleProof.verify(root, receipt, index, count, proof)) revert NotUnderTheRoot(receipt);
    }
}

contract ExamplesTest is EscrowBase {
    CanvasReader private _reader;

    function setUp() public override {
        super.setUp();
        _reader = new CanvasReader(IEscrow(address(escrow)));
    }

    function test_reads_what_a_channel_has_paid() public {
        (Channel memory channel, bytes32 id) = open(1);
        vm.expectRevert(abi.encodeWithSelector(CanvasReader.NothingSettled.selector, id));
        _reader.paid(id);
        Claim[] memory claims = new Claim[](1);
        claims[0] = claimOf(channel, 1234, 1);
        escrow.settle(claims);
        vm.assertEq(_reader.paid(id), 1234, "what was settled");
    }

    function test_accepts_a_receipt_under_the_root_and_no_other() public {
        bytes32[] memory leaves = new bytes32[](2);
        (leaves[0], leaves[1]) = (keccak256("receipt 0"), keccak256("receipt 1"));
        bytes32 root = MerkleTree.root(leaves);
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = MerkleProof.hashLeaf(leaves[1]);
        _reader.check(root, leaves[0], 0, 2, proof);
        vm.expectRevert(abi.encodeWithSelector(CanvasReader.NotUnderTheRoot.selector, leaves[1]));
        _reader.check(root, leaves[1], 0, 2, proof);
    }
}
