"""Packages of the extra `curate`."""

import importlib.util

from taskfit.errors import SettingsError


def need_package(module: str, what: str) -> None:
    """Raise where a package is absent.

    Args:
        module: The module it is imported as.
        what: What needs it.

    Raises:
        SettingsError: Saying how to install it.
    """
    if importlib.util.find_spec(module) is None:
        raise SettingsError(
            f"{what} needs the package {module}, which is not installed: "
            "pip install 'taskfit[curate]', or leave the step out."
        )
