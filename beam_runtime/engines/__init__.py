"""Serving engines that BEAM steers: one protocol (base), one file per engine."""
