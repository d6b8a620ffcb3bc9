"""What can be done with perf-energy tables: inspect, look up, check, compare, merge, convert."""
