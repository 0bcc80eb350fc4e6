"""Checkpoints as repositories have them: config, weights, tokenizer, labels and modules, read and checked."""
