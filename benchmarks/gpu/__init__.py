"""Everything that is waiting for a GPU, as one command with a time limit: see README.md."""
