"""What a file is, by its first bytes, whatever it is called."""

import zipfile
from pathlib import Path
from typing import IO

from taskfit.errors import DataError

HEAD = 4096  # bytes
GZIP = b"\x1f\x8b"
ZIP = b"PK\x03\x04"
# First bytes -> what a file is, and what to do with it.
OTHER = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": (
        "an old Excel file (.xls), or one with a password",
        "Save it in Excel as .xlsx without a password, or as CSV UTF-8",
    ),
    b"BZh": ("packed by bzip2", "Unpack it, or pack it with gzip"),
    b"\xfd7zXZ\x00": ("packed by xz", "Unpack it, or pack it with gzip"),
    b"\x28\xb5\x2f\xfd": ("packed by zstandard", "Unpack it, or pack it with gzip"),
    b"7z\xbc\xaf": ("a 7-Zip archive", "Unpack it and give a file of it"),
    b"%PDF": ("a PDF", "Give the table it was made from"),
    b"SQLite format 3": ("an SQLite database", "Export the table as CSV"),
    b"ARROW1": ("an Arrow (Feather) file", "Save it as Parquet"),
    b"\x93NUMPY": ("a NumPy array", "Save it as a table with named columns"),
    b"{\\rtf": ("a document of a word processor (RTF)", "Save it as CSV UTF-8"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file", "Fetch it: git lfs pull"),
    b"<!doctype html": ("a web page", "Download the file itself"),
    b"<html": ("a web page", "Download the file itself"),
    b"<table": ("a table of a web page (HTML)", "Save it as .xlsx or CSV UTF-8"),
    b"<?xml": ("an XML file", "Save it as .xlsx or CSV UTF-8"),
}
# Byte order marks and the encodings that they tell; the longer ones come first.
MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
JSON = ('{"', "[{", "[]")


def check_contents(head: bytes, source: str) -> None:
    """Check that the beginning of a file is not that of something known that is not read.

    Raises:
        DataError: Saying what it is, and what to do.
    """
    # Excel writes "<html" tables as .xls; HTML may begin with blanks and capitals.
    folded = head[:64].lstrip().lower()
    for start, (what, todo) in OTHER.items():
        if head.startswith(start) or folded.startswith(start):
            raise DataError(f"{source} is {what}, which is not read here. {todo}.")


def true_kind(file: IO[bytes], source: str, kind: str) -> str:
    """Return the ending that tells what a file holds, which its name may not.

    Args:
        file: Unpacked, at its beginning.
        source: What messages call it.
        kind: The ending of its name.

    Raises:
        DataError: If it holds something known that is not read.
    """
    head = file.read(HEAD)
    if head.startswith(b"PAR1"):
        return ".parquet"
    if head.startswith(ZIP):
        file.seek(0)
        return _kind_of_archive(file, head, source)
    check_contents(head, source)
    if kind == ".xlsx":
        raise DataError(
            f"{source} is called .xlsx, but is no Excel file. Save it anew, or give it the ending "
            "of what it is."
        )
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if kind in (".csv", ".tsv") and text.startswith(JSON):
        return ".json"
    return kind


def _kind_of_archive(file: IO[bytes], head: bytes, source: str) -> str:
    """Tell Excel files from other archives; both are zip files."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        what = "an Excel file" if b"xl/" in head or b"[Content_Types]" in head else "a zip archive"
        raise DataError(f"{source} is {what}, and damaged: {error}. Save it anew.") from error
    if "xl/workbook.bin" in names:
        raise DataError(f"{source} is a binary Excel file (.xlsb). Save it as .xlsx or CSV UTF-8.")
    if any(name.startswith("xl/") for name in names):
        return ".xlsx"
    if "mimetype" in names and "content.xml" in names:
        raise DataError(f"{source} is an OpenDocument file. Save it as .xlsx or CSV UTF-8.")
    shown = ", ".join(Path(name).name for name in names[:3]) + (", ..." if len(names) > 3 else "")
    raise DataError(f"{source} is a zip archive (of {shown}). Unpack it and give a file of it.")


def true_encoding(head: bytes, source: str, encoding: str) -> str:
    """Return the encoding of a text: as given, or as its byte order mark tells.

    Raises:
        DataError: If the text is UTF-16 without a mark and no such encoding is given.
    """
    mark = next((mark for mark in MARKS if head.startswith(mark)), None)
    if encoding == "utf-8":
        # A byte order mark is not part of the first column's name.
        return MARKS[mark] if mark else _without_mark(head, source, "utf-8-sig")
    return (
        encoding
        if encoding.startswith(("utf-16", "utf-32"))
        else _without_mark(head, source, encoding)
    )


def _without_mark(head: bytes, source: str, encoding: str) -> str:
    """Refuse UTF-16 without a mark: every second byte of what is mostly ASCII is 0."""
    start = head[:64]
    pairs = len(start) // 2
    for name, zeros, others in (
        ("utf-16-le", start[1::2], start[::2]),
        ("utf-16-be", start[::2], start[1::2]),
    ):
        if pairs > 1 and zeros.count(0) >= 0.8 * pairs and others.count(0) <= 0.2 * pairs:
            raise DataError(
                f"{source} is UTF-16 without a byte order mark, as it seems: every second byte is "
                f"0. Give its encoding, --encoding {name} or --set data.encoding={name}, or save "
                "it as UTF-8."
            )
    return encoding
