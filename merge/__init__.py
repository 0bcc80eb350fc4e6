"""Align, merge and take apart Hugging Face transformer models."""

__version__ = "0.1.0"
