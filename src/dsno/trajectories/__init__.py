"""Trajectories on disk: made, described by a manifest, read in any order, verified.

What is written here is read by anyone: shards are safetensors, the manifest is JSON. How an ODE is
solved lives in `diffusion`.
"""
