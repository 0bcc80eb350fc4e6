"""A permutation table for a model that has none, read off one run of it and proved on others.

derive          the whole way: run, table, proof
specimen        a model with random parameters, and inputs made up for it
trace           every operation of the run, and the factors of every tensor
factors         the units that a dimension is made of, and which must be permuted alike
operations      the rules: factors of an operation's outputs from those of its inputs; `views` for reshapes and slices
lines           the factors written in the notation
taps            where the units of each axis can be hooked
"""
