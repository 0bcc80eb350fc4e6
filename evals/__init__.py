"""Measure merged models: tasks, loss barriers, reports."""
