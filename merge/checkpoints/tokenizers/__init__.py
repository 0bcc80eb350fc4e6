"""Tokenizers: read, compared, united and written."""
