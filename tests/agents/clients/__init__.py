"""One script a client. Each runs in an environment of its own, and fails with an assertion."""
