"""Trajectories in layouts that other toolkits read, written and read back.

`about` says what an export holds, `state_arrays` converts stored states to what a network is given
and back, `layout` is what every layout can do, `table` lists them: one module each. `export` and
`restore` walk through the shards. Nothing written or read here is a pickle.
"""
