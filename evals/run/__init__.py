"""Run an evaluation: what the commands and the Python API share."""
