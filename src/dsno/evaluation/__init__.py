"""How good samples are: samplers side by side, distances, figures, the report.

Everything here sees a sampler only as a callable from noise and condition to samples, so that the
teacher and the student are measured by the same code.
"""
