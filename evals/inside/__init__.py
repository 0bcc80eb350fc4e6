"""What is inside models: named activations (sites), feature connectivity of two models, similarity of representations."""
