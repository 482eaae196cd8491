"""Networks seen from outside: how each kind is built, called and where time is mixed in it.

One module for each family of networks, and the safe loading of their files. A network's own code
may live here only where no library has it.
"""
