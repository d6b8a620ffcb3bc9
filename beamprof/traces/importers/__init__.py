"""Foreign trace formats: one file each, found by their header or by name."""
