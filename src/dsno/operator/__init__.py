"""The solution operator: a network with time made a dimension of its data.

The temporal convolution, the lift that attaches it to a network without touching its code, and
`DSNO`, which owns both. How it is trained and saved lives elsewhere.
"""
