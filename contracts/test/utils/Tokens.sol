// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @notice An ERC-20 that anybody mints.
contract PlainToken is ERC20 {
    constructor() ERC20("Plain", "PLN") {}

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }
}

/// @notice Burns one percent of every transfer.
contract FeeToken is PlainToken {
    function _update(address from, address to, uint256 value) internal override {
        if (from != address(0) && to != address(0)) {
            super._update(from, address(0), value / 100);
            value -= value / 100;
        }
        super._update(from, to, value);
    }
}

/// @notice Adds one unit to every transfer: what it credits is not what was asked for.
contract BonusToken is PlainToken {
    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (from != address(0) && to != address(0)) super._update(address(0), to, 1);
    }
}

/// @notice Refuses transfers to blocked addresses, as dollar tokens do.
contract BlockListToken is PlainToken {
    mapping(address => bool) public blocked;

    function setBlocked(address who, bool yes) external {
        blocked[who] = yes;
    }

    function _update(address from, address to, uint256 value) internal override {
        require(!blocked[to], "blocked");
        super._update(from, to, value);
    }
}

/// @notice Calls a target before every transfer, as ERC-777 does, and swallows its failure. Authorizations are taken
/// without a signature.
contract ReentrantToken is PlainToken {
    address public target;
    bytes public call;
    bytes public reason;
    bool public reentered;
    bool public called;

    function arm(address target_, bytes calldata call_) external {
        (target, call, reentered, called) = (target_, call_, false, false);
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
        _transfer(from, to, value);
    }

    function _update(address from, address to, uint256 value) internal override {
        if (target != address(0)) {
            called = true;
            (reentered, reason) = target.call(call);
        }
        super._update(from, to, value);
    }
}

/// @notice Misbehaves in transfer once it is armed.
contract BombToken is PlainToken {
    enum Mode {
        None,
        Heavy,
        Burn,
        LongRevert,
        LongAnswer,
        ShortAnswer
    }

    Mode public mode;

    function arm(Mode mode_) external {
        mode = mode_;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        Mode m = mode;
        if (m == Mode.Heavy) {
            uint256 start = gasleft();
            while (start - gasleft() < 300_000) {}
        }
        assembly ("memory-safe") {
            switch m
            case 2 { invalid() }
            case 3 { revert(0, 300000) }
            case 4 { return(0, 300000) }
            case 5 {
                mstore(0, not(0))
                return(0, 1)
            }
        }
        return super.transfer(to, amount);
    }
}

/// @notice An old token: transfer and transferFrom return nothing; any unknown call succeeds without effect.
contract NoReturnToken {
    mapping(address => uint256) public balanceOf;
    mapping(address => mapping(address => uint256)) public allowance;

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function approve(address spender, uint256 amount) external {
        allowance[msg.sender][spender] = amount;
    }

    function transfer(address to, uint256 amount) external {
        _move(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) external {
        allowance[from][msg.sender] -= amount;
        _move(from, to, amount);
    }

    /// @dev Like wrapped ether: a permit or authorization "succeeds".
    fallback() external {}

    function _move(address from, address to, uint256 amount) private {
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}

/// @notice transfer returns false and moves nothing.
contract FalseToken is PlainToken {
    bool public refusing;

    function refuse(bool yes) external {
        refusing = yes;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        return refusing ? false : super.transfer(to, amount);
    }
}

/// @notice A block list that changes, gas that is burnt at times, and authorizations without a signature.
contract HostileToken is BlockListToken {
    bool public burning;

    function burn(bool yes) external {
        burning = yes;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        if (burning) {
            assembly ("memory-safe") {
                invalid()
            }
        }
        return super.transfer(to, amount);
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
        _transfer(from, to, value);
    }
}
