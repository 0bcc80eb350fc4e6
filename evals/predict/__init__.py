"""Run models on rows: tokens, batches, logits, and several processes."""
