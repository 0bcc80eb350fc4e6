"""Recipes: the record that flags and YAML build, and its schema."""
