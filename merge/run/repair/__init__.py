"""Repair of a merged model: units rescaled to the statistics of its parents (REPAIR)."""
