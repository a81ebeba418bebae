// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice The cheatcodes of halmos.
interface SVM {
    function createUint(uint256 bits, string memory name) external returns (uint256);
    function createAddress(string memory name) external returns (address);
    function createBytes32(string memory name) external returns (bytes32);
    function createBytes(uint256 size, string memory name) external returns (bytes memory);
    function createBool(string memory name) external returns (bool);
    function enableSymbolicStorage(address target) external;
}

/// @notice The cheatcodes that halmos shares with forge.
interface VM {
    function assume(bool condition) external;
    function prank(address sender) external;
    function deal(address who, uint256 coins) external;
    function etch(address target, bytes calldata code) external;
    function warp(uint256 timestamp) external;
    function load(address target, bytes32 slot) external returns (bytes32);
}

/// @notice The smallest token that keeps books.
contract BookToken {
    mapping(address => uint256) public balanceOf;

    function set(address who, uint256 amount) external {
        balanceOf[who] = amount;
    }

    function transfer(address to, uint256 amount) external returns (bool) {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
        return true;
    }

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        uint8,
        bytes32,
        bytes32
    ) external {
        balanceOf[from] -= value;
        balanceOf[to] += value;
    }
}
