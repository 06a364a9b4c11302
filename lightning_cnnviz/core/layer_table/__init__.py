"""Every layer with its sizes, sums, parameters and receptive field."""
