"""Faults on real runs: real processes, real signals, real disks. `python -m tests.faults` runs all and prints a table."""
