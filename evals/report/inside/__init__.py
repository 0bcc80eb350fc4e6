"""Tables, figures and sections of the page of what is inside models."""
