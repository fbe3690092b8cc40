"""The commands that a base install can run, a file each."""
