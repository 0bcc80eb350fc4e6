"""Model cards, evaluation results in them, figures, and uploads to the Hub."""
