"""What all monitors are made of: when they look, at what, and what becomes of a failure."""
