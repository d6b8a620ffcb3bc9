"""Setting GPU clocks, and giving them back: one protocol (base), one file per way to do it."""
