"""Computation on tensors and plain modules: no Lightning, no logger, no picture."""
