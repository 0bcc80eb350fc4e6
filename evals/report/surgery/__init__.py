"""Tables, figures and sections of the page for lesions and linear maps."""
