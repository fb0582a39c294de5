"""Public names of packages, loaded on first use, so that importing a package pulls in nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def loaded_on_use(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: its name.
        homes: which module has a name, below the package.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it offers {', '.join(homes)}"
            )
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load
