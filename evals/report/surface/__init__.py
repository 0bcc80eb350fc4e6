"""Figures, tables and sections of the page for planes, curves, simplexes and interpolation from the start."""
