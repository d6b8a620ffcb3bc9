"""What BEAM knows of a GPU: one TOML per device, and the physics that turns it into time and power.

device reads the files; gemm, attention, power and forward are pure functions of them.
"""
