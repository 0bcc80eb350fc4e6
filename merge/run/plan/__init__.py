"""What a run will do, known from headers alone: checks, heads, vocabulary, settings, the order of tensors."""
