"""The only package that talks JSON-RPC: reading, building and sending what the contracts offer, and dev chains.

Pure: `abi`, `calls`, `authorizations`, `events`, `fees`, `rawtx`. Shells: `rpc`, `reader`, `transactions`,
`deploy`, `faucet`. Development chains: `embedded` (py-evm in this process) and `anvil` (a child process).
"""
