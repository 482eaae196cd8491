"""What the pipeline is asked for and what it gives: arguments, outputs, saved folders, files.

Enters here: what stands between a user and one evaluation of the operator, not the operator.
"""
