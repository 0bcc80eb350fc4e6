"""Downloads from the Hub, and one line for each way in which they fail."""
