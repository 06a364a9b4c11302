"""Units back to pixels, through the operations of the pass that made them."""
