"""Scores of predictions, their intervals and tests, by the names of the official metrics."""
