"""Layers of one checkpoint or several: plans, strategies, repair, pruning and stitches."""
