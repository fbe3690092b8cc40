"""segment-anything's names over ours, for notebooks that are to run without PyTorch."""
