"""What the chain says now: channels, workers, disputes, the token, and who signed. Read only."""
