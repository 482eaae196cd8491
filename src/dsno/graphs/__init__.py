"""A model as one graph of tensors, for programs that have neither this package nor its classes.

Enters here: how an operator is captured, in which formats the graph is written, and the check that
a written file gives what the operator gives.
"""
