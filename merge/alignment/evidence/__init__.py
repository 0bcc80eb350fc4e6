"""Evidence on an alignment.

proof        the aligned model still computes the same function
quality      how similar the matched units are, against chance
distance     of the two models' weights, before and after
"""
