"""Stitches of two models: the map between them, and the layer that holds it."""
