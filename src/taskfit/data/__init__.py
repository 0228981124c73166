"""Read labelled texts, split them, draw from them, and find what stands in two sets."""

from taskfit.data.builtin import BUILTIN_NAMES, BuiltinData, load_builtin
from taskfit.data.columns import Columns
from taskfit.data.examples import (
    Example,
    check_labels,
    check_one_label_each,
    check_several_classes,
    label_names,
    left_out_note,
    to_examples,
    without_blank,
)
from taskfit.data.fetch import PinnedPackage, cache_folder, fetch_package
from taskfit.data.guess import guess_columns, guess_note
from taskfit.data.overlap import Overlap, drop_overlap
from taskfit.data.splits import draw, split_validation
from taskfit.data.tables import notes_of, read_table, rename_columns
from taskfit.data.visible import look_alike_note

__all__ = [
    "BUILTIN_NAMES",
    "BuiltinData",
    "Columns",
    "Example",
    "Overlap",
    "PinnedPackage",
    "cache_folder",
    "check_labels",
    "check_one_label_each",
    "check_several_classes",
    "draw",
    "drop_overlap",
    "fetch_package",
    "guess_columns",
    "guess_note",
    "label_names",
    "left_out_note",
    "load_builtin",
    "look_alike_note",
    "notes_of",
    "read_table",
    "rename_columns",
    "split_validation",
    "to_examples",
    "without_blank",
]
