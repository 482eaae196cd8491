"""A run: a recipe, its folder and the stages that fill it.

What turns a whole recipe into objects, files and estimates lives here, and nothing that a stage
computes: that is the rooms' below, which take plain arguments.
"""
