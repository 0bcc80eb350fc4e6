"""Choose an alignment without labels: candidates, their scores on text, and models of one start."""
