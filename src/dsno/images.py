"""Door: pictures of samples, for those who use the package as a library."""

from dsno.support.images import grid, save_png

__all__ = ["grid", "save_png"]
