"""The command line: parse, call, print.

One module a group of commands. Each command imports what it needs when it runs, as torch and
diffusers cost seconds; what a module here imports at its top, every command pays for.
"""

from dsno.cli.entry import main

__all__ = ["main"]
