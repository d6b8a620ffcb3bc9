"""What an embedding is tested with: an engine, an actuator and an NVML that need no GPU."""
