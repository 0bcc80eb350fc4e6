"""mergekit's YAML read as a recipe of ours, or refused with the reason."""
