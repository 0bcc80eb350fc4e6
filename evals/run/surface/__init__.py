"""Planes, curves, simplexes and interpolation from the start: what the commands and `evals` run."""
