"""Model shapes: what a table needs to know of a network."""
