"""The networks in PyTorch, their checkpoints, and how they are trained and evaluated."""
