"""kill -9 of every process of a market at random moments, and the books at the end."""
