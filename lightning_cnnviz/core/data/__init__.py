"""What comes from a data set: batches, a sample, and what ranks say to each other."""
