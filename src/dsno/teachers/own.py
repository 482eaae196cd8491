"""Teachers from the user's own Python file: an adapter."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from dsno.diffusion.denoisers import Denoiser
from dsno.support.errors import DsnoError, InputError
from dsno.teachers.store import Teacher
from dsno.teachers.trial import try_out


def load_adapter(path: Path) -> ModuleType:
    """Run an adapter file, which makes its network's class known with `register`.

    This runs the user's code, so it is only done for files named on the command line or by the
    caller, never for one named in a recipe or a saved folder.

    Raises:
        InputError: if it is not a Python file, or fails.
    """
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"Expected a Python file (.py) as the adapter, found {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # so that dataclasses and pickling of workers find it
    try:
        spec.loader.exec_module(module)
    except DsnoError:
        raise
    except Exception as error:  # the user's code may fail in any way
        raise InputError(
            f"The adapter {path} failed ({type(error).__name__}: {error}); correct it."
        ) from error
    return module


def own_teacher(path: Path) -> Teacher:
    """What the `teacher()` function of an adapter file returns: a `Denoiser` or a `Teacher`.

    Raises:
        InputError: if there is no such function, or it returns something else, or that cannot
            denoise a sample of its shape.
    """
    module = load_adapter(path)
    make = getattr(module, "teacher", None)
    if not callable(make):
        raise InputError(
            f"The adapter {path} has no function teacher(); let it return a dsno.Denoiser."
        )
    made = make()
    if isinstance(made, Denoiser):
        made = Teacher(made, origin=str(path))
    if not isinstance(made, Teacher):
        raise InputError(
            f"Expected a dsno.Denoiser from teacher() in {path}, found a {type(made).__name__}."
        )
    made.denoiser.network.eval().requires_grad_(False)
    return try_out(made, f"teacher() in {path}", "correct the network, its call or sample_shape")
