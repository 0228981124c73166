"""The one door to data sets of the hub: `datasets`, which is an optional dependency."""

import importlib.util

import pandas as pd

from taskfit.data.text_values import as_text
from taskfit.errors import DataError


def read_hub(source: str, *, split: str) -> pd.DataFrame:
    """Read one split of a hub data set as texts; see `hub_table`."""
    return as_text(hub_table(source, split=split))


def hub_table(source: str, *, split: str) -> pd.DataFrame:
    """Read one split of a hub data set as it is, but for class labels, which become their names.

    Args:
        source: `owner/name` or `owner/name:configuration`.
        split: Name of the split; where there is no `test`, `validation` serves.

    Raises:
        DataError: If the package or the data set cannot be had.
    """
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"{source} is no file here; to read it from the hub, install the package: "
            "pip install 'taskfit[hub]'."
        )
    import datasets

    name, _, configuration = source.partition(":")
    try:
        found = datasets.load_dataset(name, configuration or None)
    except (OSError, ValueError, RuntimeError) as error:
        first_line = (
            str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        )
        raise DataError(
            f"{source} is no file here and could not be had from the hub: {first_line} Check the "
            "spelling and the network; where there is none, give a local file."
        ) from error
    names = [split, "validation"] if split == "test" else [split]
    chosen = next((other for other in names if other in found), None)
    if chosen is None:
        raise DataError(f"{source} has no split {split!r}; it has: {', '.join(found)}.")
    table: pd.DataFrame = found[chosen].to_pandas()
    for column, feature in found[chosen].features.items():
        if isinstance(feature, datasets.ClassLabel):
            # -1 marks hidden labels of test sets.
            table[column] = ["" if v < 0 else feature.int2str(int(v)) for v in table[column]]
    return table
