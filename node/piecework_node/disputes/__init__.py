"""The worker's part in disputes: it watches for challenges and opens what they ask for."""
