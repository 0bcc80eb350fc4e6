"""The evaluate-models command: one module a subcommand, their shared options, and how results are printed."""
