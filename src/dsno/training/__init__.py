"""How a network is trained: the loop, batches, losses, checkpoints, processes and logs.

Teacher and student are trained by the same code. What is special to the operator's layers lives
in `operator`, what is read from disk in `trajectories` and `data`.
"""
