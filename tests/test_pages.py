"""The pages of the experiments show what their records say."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import pages  # noqa: E402


@pytest.mark.parametrize("page", sorted(pages.PAGES.glob("*.md")), ids=lambda page: page.name)
def test_tables_of_a_page_are_those_of_its_record(page: Path) -> None:
    assert pages.filled(page) == page.read_text(encoding="utf-8")


def test_a_page_that_is_behind_its_record_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "record.md").write_text("# x\n\n## scores\n\n| a |\n\n## costs\n\n| b |\n")
    page = tmp_path / "page.md"
    page.write_text("Text.\n<!-- record.md: costs -->\n| old |\n<!-- end -->\nMore.\n")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert "| b |" in pages.filled(page)
    assert "| old |" not in pages.filled(page)
    assert pages.filled(page).startswith("Text.\n")
    page.write_text("<!-- record.md: speed -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="scores, costs"):
        pages.filled(page)
