"""Whether files compute what PyTorch computes: figures, tolerances and grades, golden vectors."""
