"""What measures a cell: one protocol (base), one file per implementation."""
