"""Trains on photographs: from folders of images and label maps to weights, as `make weights`."""
