"""Measure the lines between many models: endpoints once a model, pairs in blocks, one record for each on the disk."""
