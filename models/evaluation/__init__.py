"""How good masks are: beside a teacher, the truth, and trivial baselines."""
