"""Tables, figures and sections of the page for sweeps over many models."""
