"""The mathematics that matchers share: assignment, rotations, coordinate descent, activation moments."""
