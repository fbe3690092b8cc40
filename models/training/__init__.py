"""Distillation, its teachers, and the images that it learns from."""
