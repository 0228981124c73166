"""Pages that are one file: a template of this room, filled and escaped, with pictures inside."""

import base64
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from taskfit.files import write_text_atomic

BACKTICKS = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in a page.

    Attributes:
        alt: What it shows, in words.
        data: Its PNG file, base64.
        width, height: Pixels, so that the page does not jump.
        caption: What stands with it.
    """

    alt: str
    data: str
    width: int
    height: int
    caption: str


def read_picture(path: Path, alt: str, *, caption: str | None = None) -> Picture:
    """Return a picture that was drawn to a path without ending, by default under its own words."""
    png = path.with_name(f"{path.name}.png").read_bytes()
    # Width and height stand at fixed places of a PNG's header.
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    data = base64.b64encode(png).decode("ascii")
    return Picture(alt, data, width, height, alt if caption is None else caption)


def prose(text: str) -> Markup:
    """Return a sentence of ours, escaped, in which what stands between backticks is code."""
    return Markup(BACKTICKS.sub(r"<code>\1</code>", str(escape(text))))


def write_html(folder: Path, template: str, *, file: str = "report.html", **values: object) -> Path:
    """Fill a template, write it into a folder and return its path.

    Args:
        folder: Where to write.
        template: Name of a file of this room.
        file: What is written.
        **values: What the template shows.
    """
    # Texts come from the user's data: everything is escaped.
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(
            lambda name: resources.files("taskfit.report").joinpath(name).read_text("utf-8")
        ),
    )
    environment.filters["prose"] = prose
    environment.tests["known"] = lambda value: value is not None and not pd.isna(value)
    path = folder / file
    write_text_atomic(path, environment.get_template(template).render(**values))
    return path
