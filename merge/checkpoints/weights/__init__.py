"""Weight files: headers and tensors read, checked and written in shards."""
