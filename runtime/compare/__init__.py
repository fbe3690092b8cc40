"""Systems side by side, at the same prompts."""
