"""What a W&B project shows of its runs: a saved workspace and a report, in reading order."""
