"""What every room stands on: errors, files, storage, seeds, processes, console.

Modules here know nothing of diffusion; what only one room needs lives in that room.
"""
