"""Points of weight space beyond one line: planes, curves, simplexes and the way from the start of training."""
