"""The merge of tensors, piece by piece, in threads."""
