"""Basins of many models: which are linearly connected, which clusters they form, and which to average."""
