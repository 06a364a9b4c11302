"""Views of a few images, and of a layer's kernels."""
