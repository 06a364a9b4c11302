"""Where reports go; what is added to this folder is found."""
