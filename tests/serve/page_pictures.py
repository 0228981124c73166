"""Pictures of the playground, narrow and wide, light and dark, to be looked at.

    python tests/serve/page_pictures.py [FOLDER] [ADDRESS]

Without the address of a server they are of one whose engine has no model. CHROMIUM is the path of
the browser.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

from live_server import serving
from page_server import AskedEngine
from playwright.sync_api import Page, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
TEXT = "The first half is slow, but the ending is warm, funny and worth the wait."


def names_of(page: Page) -> list[str]:
    """Return the models that can be chosen."""
    return page.get_by_label("Model", exact=True).locator("option").all_inner_texts()


def show_one(page: Page) -> None:
    """One text: bars, words, tokens, two models side by side, code."""
    page.get_by_label("Text", exact=True).fill(TEXT)
    if page.locator("#beside").is_visible():
        page.get_by_label("Beside it").select_option(index=1)
    page.get_by_role("button", name="Answer", exact=True).click()
    page.locator(".bars").first.wait_for()
    page.get_by_role("button", name="What each word does").click()
    page.locator(".shaded").first.wait_for()
    page.get_by_text("The prompt as the model reads it").first.click()
    page.get_by_text("This request as code").click()


def show_question(page: Page) -> None:
    """The editor of questions."""
    page.get_by_label("Text", exact=True).fill(TEXT)
    if not page.get_by_label("Question").locator("[value=new]").count():
        return
    page.get_by_label("Question").select_option("new")
    page.get_by_label("What is asked").fill("Which part is praised?")
    for number, name in enumerate(["beginning", "ending"], 1):
        page.get_by_label(f"Name of option {number}").fill(name)
    page.get_by_role("button", name="Answer", exact=True).click()
    page.locator(".bars").first.wait_for()


def show_many(page: Page) -> None:
    """Many texts as a table."""
    page.get_by_label("Many texts").check()
    page.get_by_label("Texts, one a line").fill(
        "\n".join([TEXT, "Dull.", "A joy from start to end."] * 4)
    )
    page.get_by_role("button", name="Answer all").click()
    page.get_by_role("button", name="Save as CSV").wait_for()


def show_chat(page: Page) -> None:
    """A conversation; where the last model is a generator."""
    page.get_by_label("Model", exact=True).select_option(index=len(names_of(page)) - 1)
    if not page.get_by_label("Chat").is_enabled():
        return
    page.get_by_label("Chat").check()
    page.get_by_label("Message").fill("Write a line about rain.")
    page.get_by_label("Most tokens").fill("40")
    page.get_by_role("button", name="Send").click()
    page.locator("#talk:not([aria-busy]) .assistant").wait_for()


def take(folder: Path, address: str | None) -> None:
    """Write FOLDER/VIEW-WIDTH-SCHEME.png for each view, width and scheme."""
    folder.mkdir(parents=True, exist_ok=True)
    source = nullcontext(SimpleNamespace(base_url=address)) if address else serving(AskedEngine())
    with source as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                page = browser.new_page(
                    viewport={"width": width, "height": 900}, color_scheme=scheme
                )  # type: ignore[arg-type]
                for view in (show_one, show_question, show_many, show_chat):
                    page.goto(str(server.base_url))
                    page.locator("#work").wait_for()
                    view(page)
                    name = f"{view.__name__.removeprefix('show_')}-{width}-{scheme}.png"
                    page.screenshot(path=folder / name, full_page=True)
                page.close()
        browser.close()


if __name__ == "__main__":
    take(Path((sys.argv[1:] or ["build/page"])[0]), (sys.argv[2:] or [None])[0])
