"""The user's network: its layers, its hooks, what its outputs mean, what fits into memory."""
