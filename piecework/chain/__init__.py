"""The only package that talks JSON-RPC: reads, builds and sends what the contracts offer.

Pure: `abi` (on `codec`), `calls`, `authorizations`, `events`, `fees`, `rawtx`. Shells: `rpc` (the
wire), `provider` (web3 over it), `reader`, `transactions`, `deploy`, `faucet`. Development chains:
`embedded` (py-evm in this process) and `anvil` (a child process).
"""
