"""Public names of packages, loaded on first use, so that importing one pulls in nothing heavy; and what extras need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from temporal_vae.errors import InputError


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


def need_extra(extra: str, *modules: str) -> None:
    """Say what to install where a module of an extra is missing.

    Raises:
        InputError: modules are missing, which it names.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InputError(
            f"{extra}: {', '.join(missing)} is not installed; pip install 'temporal-vae[{extra}]'"
        )
