"""Names of tensors: those of old files, those that transformers writes, and the canonical ones."""
