"""What the client must not lose: channels, jobs, receipts and vouchers on disk."""
