"""Versions and machine, as they are recorded with every number."""

from __future__ import annotations

import importlib.metadata

import pytest

import dsno
from dsno.support.environment import environment


def test_a_checkout_that_is_not_installed_has_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def of_others(name: str) -> str:
        if name == "dsno":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", of_others)
    assert environment()["dsno"] == dsno.__version__
