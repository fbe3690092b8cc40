"""The network, in PyTorch, and its checkpoints. Imports nothing of export or runtime."""
