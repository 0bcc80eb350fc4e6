"""Align model B to model A: match units, prove that the function is unchanged, measure what it is worth."""
