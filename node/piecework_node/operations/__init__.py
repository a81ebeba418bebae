"""What an owner does with a worker: set up, check, join, leave, rotate a key, update, recover."""
