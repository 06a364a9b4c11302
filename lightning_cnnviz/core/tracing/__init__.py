"""What one pass through a network computes, and which pixels each unit depends on."""
