"""Plans of layers: the record, its text, and the checkpoint that it makes."""
