"""Changes of a model's weights that keep its function. In the order in which to read it:

notation          the named axes of a tensor as one line of text
spec              an architecture as a table: a line for every tensor
architectures     the tables, one file for each family; start with `encoder` and `bert`
permutation       index arrays for the axes, applied to a model
groups, maps      signs, scales and rotations that act on an axis as well
transform         a permutation and maps: the general symmetry; `transform_files` saves it
rewrites          freedom of the weights that no output shows; `canonical` removes it
"""
