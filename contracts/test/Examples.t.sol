// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {ChannelState, IEscrow} from "../src/interfaces/IEscrow.sol";
import {MerkleProof} from "../src/libraries/MerkleProof.sol";
import {Channel, Claim, WithdrawPooled} from "../src/libraries/PieceworkTypes.sol";
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

/// @notice A smart account with two owners of whom both must agree, shaped like a Safe: what it signs is a digest of its
/// own over the message (so that one owner's signature for another account says nothing), and a signature is the
/// owners' signatures in the order of their addresses. docs/contracts/examples.md explains how it pays for work.
contract TwoOwners {
    address private immutable _FIRST;
    address private immutable _SECOND;

    error NotByBoth();

    constructor(address first, address second) {
        (_FIRST, _SECOND) = first < second ? (first, second) : (second, first);
    }

    /// @notice What the owners sign for a digest that somebody shows this account.
    function messageDigest(bytes32 digest) public view returns (bytes32) {
        return keccak256(abi.encode(keccak256("Message(bytes32 digest)"), block.chainid, this, digest));
    }

    /// @notice ERC-1271: 130 bytes, one signature of each owner.
    function isValidSignature(bytes32 digest, bytes calldata signatures) external view returns (bytes4) {
        if (signatures.length != 130) return bytes4(0);
        bytes32 message = messageDigest(digest);
        (address first,,) = ECDSA.tryRecoverCalldata(message, signatures[:65]);
        (address second,,) = ECDSA.tryRecoverCalldata(message, signatures[65:]);
        return first == _FIRST && second == _SECOND ? this.isValidSignature.selector : bytes4(0);
    }

    /// @notice Calls anything that both owners signed. A real account also counts a nonce.
    function execute(address target, bytes calldata data, bytes calldata signatures) external {
        bytes32 digest = keccak256(abi.encode(target, data));
        if (this.isValidSignature(digest, signatures) == bytes4(0)) revert NotByBoth();
        (bool done,) = target.call(data);
        require(done, "the call failed");
    }
}

contract ExamplesTest is EscrowBase {
    CanvasReader private _reader;

    function setUp() public override {
        super.setUp();
        _reader = new CanvasReader(escrow);
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

    // ------------------------------------------------------------------ a smart account pays for work

    uint256 private constant _OTHER_KEY = 0xCAB;

    TwoOwners private _account;

    /// @dev Both owners sign, in the order of their addresses.
    function _both(bytes32 digest) private view returns (bytes memory) {
        bytes32 message = _account.messageDigest(digest);
        (uint256 first, uint256 second) = (PAYER_KEY, _OTHER_KEY);
        if (vm.addr(first) > vm.addr(second)) (first, second) = (second, first);
        return bytes.concat(signDigest(first, message), signDigest(second, message));
    }

    function _execute(address target, bytes memory data) private {
        _account.execute(target, data, _both(keccak256(abi.encode(target, data))));
    }

    function _refused(Channel memory channel, bytes memory signature) private {
        vm.expectRevert(abi.encodeWithSelector(IEscrow.BadSignature.selector, address(_account)));
        escrow.fund(channel, DEPOSIT, 100, SOON, signature);
    }

    function test_a_smart_account_deposits_opens_pays_closes_and_takes_the_rest() public {
        _account = new TwoOwners(payer, vm.addr(_OTHER_KEY));
        token.mint(address(_account), POOLED);
        // It deposits by two calls of its own.
        _execute(address(token), abi.encodeCall(token.approve, (address(escrow), POOLED)));
        _execute(
            address(escrow), abi.encodeCall(IEscrow.deposit, (address(token), POOLED, address(_account)))
        );
        vm.assertEq(pooled(address(_account)), POOLED, "deposited");
        // It opens by a signature, which the worker submits: 100 base units are the worker's fee for that.
        Channel memory channel = channelOf(1);
        channel.payer = address(_account);
        bytes32 id = escrow.channelId(channel);
        bytes32 digest = digestOf(hashes.fundChannel(channel, DEPOSIT, 100, SOON));
        _refused(channel, signDigest(PAYER_KEY, digest));
        _refused(channel, _both(~digest));
        vm.prank(operator);
        escrow.fund(channel, DEPOSIT, 100, SOON, _both(digest));
        // It pays by vouchers of a plain key, the authorizer: no owner is asked for each canvas.
        settleOne(claimOf(channel, 1234, 1));
        vm.assertEq(token.balanceOf(receiver), 1234, "paid");
        // Authorizer and operator close; the rest is pooled again.
        Claim memory last = claimOf(channel, 2000, 2);
        bytes memory agreed = closeSignature(OPERATOR_KEY, last, 0);
        escrow.close(last, 0, agreed);
        expectState(id, DEPOSIT, 2000, true);
        // It takes the rest by a signed order, which anybody submits for a fee.
        WithdrawPooled memory order = WithdrawPooled(
            address(_account), address(token), uint128(POOLED) - 2105, address(_account), 5, 0, SOON
        );
        bytes memory signatures = _both(digestOf(hashes.withdrawPooled(order)));
        vm.prank(stranger);
        escrow.withdrawBalanceFor(order, signatures);
        vm.assertEq(token.balanceOf(address(_account)), POOLED - 2105, "the account has the rest");
        vm.assertEq(pooled(address(_account)), 0, "nothing is left behind");
        escrow.pushPayout(address(token), receiver);
        vm.assertEq(token.balanceOf(receiver), 2100, "the worker has its work and its fee");
    }

    function test_a_smart_account_opens_out_of_its_wallet_by_one_signature() public {
        _account = new TwoOwners(payer, vm.addr(_OTHER_KEY));
        token.mint(address(_account), DEPOSIT);
        Channel memory channel = channelOf(1);
        channel.payer = address(_account);
        bytes32 nonce = escrow.openingNonce(escrow.channelId(channel), 0, 0);
        bytes memory signatures = _both(authorizationDigest(address(_account), DEPOSIT, nonce));
        escrow.openWithAuthorization(channel, DEPOSIT, 0, 0, type(uint256).max, signatures);
        expectState(escrow.channelId(channel), DEPOSIT, 0, false);
    }
}
