"""The job port: what clients reach, bounded before gRPC and before a key is looked at."""
