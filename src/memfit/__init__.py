"""Keras 3 training that fits in the memory that is there."""
