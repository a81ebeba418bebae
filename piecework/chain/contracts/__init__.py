"""What the contracts take and say, as values and bytes. Pure: nothing here asks a node."""
