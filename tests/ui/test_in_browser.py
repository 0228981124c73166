"""From a dropped file to a winner as a person does it, in headless Chromium."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from test_winner import spoil_bag_of_words

import tiny
from conftest import base_settings
from taskfit.compare.grid import expand_grid, load_grid
from taskfit.compare.run import run_grid
from taskfit.files import write_json_atomic
from taskfit.screen import SilentScreen
from taskfit.ui import worker
from taskfit.ui.app import make_app
from taskfit.ui.budgets import MethodPlan
from taskfit.ui.guard import key_of
from taskfit.ui.listen import listen
from taskfit.ui.verdict import write_verdict

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))
MARKUP = '<img src=x onerror="window.broken = 1"><b>bold</b>'


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}; name one with CHROMIUM=PATH")
    with playwright_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def server(tmp_path: Path, model_folder: Path) -> Iterator[tuple[str, Path]]:
    """A live server; the address that the terminal would show, and its folder."""
    home = tmp_path / "ui"
    app = make_app(home, base=base_settings(model_folder))
    with listen("127.0.0.1", 0) as listener:
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/?key={key_of(home)}", home
        running.should_exit = True
        thread.join(30)


@pytest.fixture
def in_this_process(
    monkeypatch: pytest.MonkeyPatch, fewer_resamples: None
) -> Iterator[threading.Event]:
    """Let a comparison run here, where everything is imported; set the event to let it end."""
    may_end = threading.Event()
    running: list[threading.Thread] = []

    def work(project) -> None:
        started = time.time()
        grid = expand_grid(load_grid(project.folder / "grid.yaml"))
        run_grid(grid, project.comparison, screen=SilentScreen())
        assert may_end.wait(60)
        spoil_bag_of_words(project)  # the toy task is easy; the model is to win
        write_verdict(project)
        told = {"phase": "done", "started": started, "finished": time.time()}
        write_json_atomic(project.folder / worker.STATUS, told)

    def start(project) -> int:
        told = {"phase": "comparing", "started": time.time(), "process": os.getpid()}
        write_json_atomic(project.folder / worker.STATUS, told)
        running.append(threading.Thread(target=work, args=(project,)))
        running[-1].start()
        return os.getpid()

    monkeypatch.setattr(worker, "start", start)
    # Plans themselves are tested in test_tables.py.
    monkeypatch.setattr("taskfit.ui.budgets._plan", lambda _: MethodPlan(40.0, 10**9))
    yield may_end
    may_end.set()
    for thread in running:  # nothing of it in the next test's process
        thread.join()


def check_access(page) -> None:
    """Run axe-core in both themes, wide and as a phone."""
    if not AXE.is_file():
        pytest.skip("axe-core is not here: npm install axe-core, or name axe.min.js in AXE_CORE")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for theme in ("light", "dark"):
        for width in (1100, 390):
            page.emulate_media(color_scheme=theme)
            page.set_viewport_size({"width": width, "height": 800})
            found = page.evaluate("axe.run()")["violations"]
            told = [(one["id"], one["nodes"][0]["html"]) for one in found]
            assert told == [], (theme, width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_from_a_file_to_a_winner(
    browser, server, in_this_process: threading.Event, tmp_path: Path
) -> None:
    address, home = server
    troubles: list[str] = []
    context = browser.new_context(bypass_csp=True)  # axe is brought in by the test
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    own = address.partition("?")[0]
    page.on("request", lambda sent: sent.url.startswith(own) or troubles.append(sent.url))
    page.goto(address)
    assert "key=" not in page.url
    examples = tiny.toy_examples(120)
    odd = tiny.Example("x", {"text": MARKUP}, "good")
    page.get_by_label("Choose a file").set_input_files(
        tiny.write_csv(tmp_path / "toy.csv", [odd, *examples])
    )
    page.get_by_text("121 rows; text in text, label in label").wait_for()
    assert page.locator("#preview tbody tr").first.inner_text().startswith(MARKUP)
    page.get_by_text("What the model reads").wait_for()
    assert page.locator("#labels li").all_inner_texts() == ["good\n61", "bad\n60"]
    assert page.locator("#prompt mark").count() >= 1

    page.get_by_role("radio", name="quick").check()
    cost = page.locator(".budget:has(:checked) .cost").inner_text()
    assert cost == "about 3 min, 1.0 GB of memory"
    page.get_by_role("button", name="Start").click()
    page.get_by_text("The quick comparison runs").wait_for()
    page.close()  # the page may close and come back
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(address)
    page.get_by_role("link", name="toy.csv").click()
    page.get_by_text("4 of 4 runs finished").wait_for()
    assert page.locator("#methods tbody tr").count() == 4
    in_this_process.set()

    page.get_by_role("heading", name="The winner: probe").wait_for()
    assert "beats" in page.locator("#reason").inner_text()
    assert "36 held-out rows again" in page.locator("#reload").inner_text()
    assert page.locator("#gained li").count() > 0
    page.get_by_label("text", exact=True).and_(page.locator("textarea")).fill(MARKUP)
    page.get_by_role("button", name="Ask").click()
    page.locator("#answer li").nth(1).wait_for()
    assert page.evaluate("window.broken") is None
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the run").click()
    assert Path(download.value.path()).read_bytes()[:2] == b"PK"
    run = page.locator("#step-winner").get_attribute("data-run")
    command = page.locator("#serve-command").inner_text()
    assert command.startswith("taskfit serve ")
    assert Path(command.split()[-1]) == home / "toy" / "comparison" / "runs" / str(run)
    assert troubles == []
    check_access(page)
    context.close()


def test_what_is_wrong_with_a_file_is_said_on_the_page(browser, server, tmp_path: Path) -> None:
    address, _ = server
    page = browser.new_page()
    page.set_default_timeout(30_000)
    for name, content, said in (
        ("empty.csv", "", "empty.csv is empty."),
        ("one.csv", "text,label\na,good\nb,good\nc,good\n", "good"),
        ("mine.exe", "x", "files of kind .exe are not read"),
    ):
        page.goto(address)
        (tmp_path / name).write_text(content)
        page.get_by_label("Choose a file").set_input_files(tmp_path / name)
        page.locator("#problem").filter(has_text=said).wait_for()
        assert page.get_by_role("button", name="Start").count() == 0
    page.context.clear_cookies()
    page.goto(address.partition("?")[0])
    assert "Open the address" in page.inner_text("body")
    page.close()
