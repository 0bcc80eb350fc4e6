"""HANS: its grammar and vocabulary, prediction files, and scores by heuristic and subcase."""
