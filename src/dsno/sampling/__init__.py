"""What the pipeline is asked for and what it gives: arguments, outputs, saved folders, files.

Enters here: what stands between a user and the evaluations of networks, not the networks.
"""
