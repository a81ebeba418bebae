"""The only package that talks JSON-RPC: reads, builds and sends what the contracts offer.

Pure: `abi`, `calls`, `authorizations`, `events`, `fees`, `rawtx`. Shells: `rpc`, `reader`, `transactions`,
`deploy`, `faucet`. Development chains: `embedded` (py-evm in this process) and `anvil` (a child process).
"""
