"""Merges that are searched for by a score: soups, cocktails and the choice of layers."""
