"""The page, tables and figures of a results folder."""
