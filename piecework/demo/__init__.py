"""`piecework demo`: a whole market on this machine, one command, real processes, a real EVM."""
