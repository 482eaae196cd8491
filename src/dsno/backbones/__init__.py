"""Networks seen from outside: how each kind is built, called and where time is mixed in it."""
