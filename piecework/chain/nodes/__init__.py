"""Asking a node: the wire, k nodes that must agree, searches of logs, and when a block is final."""
