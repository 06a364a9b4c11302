"""How two networks compare, unit by unit and layer by layer."""
