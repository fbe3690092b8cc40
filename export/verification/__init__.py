"""The proof: a bundle's outputs beside PyTorch's, the report, grades, and golden vectors."""
