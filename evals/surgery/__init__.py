"""What layers do: models with layers left out, in other orders, or replaced by linear maps, judged on rows."""
