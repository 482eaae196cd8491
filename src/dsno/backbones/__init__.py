"""Calling conventions and site finders of the networks a teacher may have."""
