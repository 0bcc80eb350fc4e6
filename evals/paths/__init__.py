"""Paths through weight space: what the loss does between models."""
