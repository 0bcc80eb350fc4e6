"""Rules that select the layers to drop, and the scores that they read."""
