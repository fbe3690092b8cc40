"""Measures masks against a teacher's and the truth, beside trivial baselines."""
