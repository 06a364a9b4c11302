"""The strongest units of every feature map, and the patches that drive them."""
