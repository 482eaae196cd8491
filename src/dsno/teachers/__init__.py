"""Where teachers come from: one module for each source, and the folder format all are saved in.

A new source is a new module whose function returns a `Denoiser`; what is known of a class of
network, whoever made it, lives in `backbones`.
"""
