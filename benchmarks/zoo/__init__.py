"""What the alignment benchmarks share: text, training that can be taken up again, the methods, and the lines they draw."""
