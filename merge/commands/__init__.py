"""The commands merge-models, edit-layers and stitch-models: one module a command, and what they share."""
