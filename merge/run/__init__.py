"""One run: plan, align, merge, write, check and report; and the Python API of it."""
