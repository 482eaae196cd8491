"""A Jupyter kernel in a process that has imported the libraries already."""

from __future__ import annotations

from ipykernel.kernelapp import IPKernelApp


def serve(connection_file: str) -> None:
    """Run cells until asked to stop.

    Args:
        connection_file: the ports and the key, written by who starts it.
    """
    IPKernelApp.launch_instance([f"--IPKernelApp.connection_file={connection_file}"])
