"""Times bundles and engines on this machine."""
