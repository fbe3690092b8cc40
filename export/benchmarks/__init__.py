"""Instruments that only `make` runs; they are not in the wheel."""
