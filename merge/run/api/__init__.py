"""The Python API of merge: one function for each command, in modules by what they take; `merge` exports them."""
