"""What each layer knows: features, and linear classifiers on them."""
