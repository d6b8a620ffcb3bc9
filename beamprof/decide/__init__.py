"""One decision, explained: what the controller would do in a given state."""
