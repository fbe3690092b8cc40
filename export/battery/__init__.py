"""Damages files, and asks whether their certificates notice: `make battery`. Not in the wheel."""
