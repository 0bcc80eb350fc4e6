"""Attention heads, feed-forward neurons and tokens removed from a checkpoint."""
