"""Texts and labelled rows, read from files or the Hub and drawn by a seed."""
