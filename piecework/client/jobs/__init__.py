"""One request from its prompt to its last payment: whom to ask, how to pay, what to tell."""
