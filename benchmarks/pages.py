"""Put the tables of recorded results into the pages that show them, where the pages ask for them.

    python benchmarks/pages.py            # every page in docs/experiments
    python benchmarks/pages.py --check    # change nothing; exit 1 where a page is not as its record

A page asks by two comments, and what stands between them is replaced:

    <!-- results/experiments/cola.md: scores -->
    <!-- end -->
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "experiments"
ASKED = re.compile(r"(<!-- (\S+\.md): (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def section(file: Path, title: str) -> str:
    """Return what stands below a `## ` heading of a record.

    Raises:
        ValueError: The file has no such heading.
    """
    parts = re.split(r"^## (.+)\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    if title not in found:
        raise ValueError(f"{file.name} has no part {title!r}, but: {', '.join(found)}")
    return found[title].strip()


def filled(page: Path) -> str:
    """Return a page with the tables that its records have now."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{section(ROOT / match[2], match[3])}\n\n{match[5]}"

    return ASKED.sub(table, page.read_text(encoding="utf-8"))


def main() -> None:
    """Fill the pages, or tell which are not as their records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    given = parser.parse_args()
    changed = []
    for page in sorted(PAGES.glob("*.md")):
        text = filled(page)
        if text != page.read_text(encoding="utf-8"):
            changed.append(page.name)
            if not given.check:
                page.write_text(text, encoding="utf-8")
    print(f"{'not as recorded' if given.check else 'changed'}: {', '.join(changed) or 'none'}")
    if given.check and changed:
        sys.exit(1)


if __name__ == "__main__":
    main()
