"""What is inside models: the runs behind `evaluate-models features` and `similarity`, and their Python API."""
