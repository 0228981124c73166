"""The playground as a person uses it, in headless Chromium against a server with made-up answers."""

import csv
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import MODELS, Server, names_of, probabilities, serving

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))
MARKUP = '<img src=x onerror="window.broken = 1"><b>bold</b>'
# Quotes of both kinds, what shells and Python read as more, line ends, characters of every width.
NASTY = 'It\'s "$HOME" `id` \\n \\ {x} %s ! #\n\ttab\r\n\'\'\'""" é 漢 🙂 \u2028 \x7f end\\'
TEXT = "The first half is slow, but the ending is warm."


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def tab(server):
    """Return one tab for all tests, and what went wrong in it or came from elsewhere."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}; name one with CHROMIUM=PATH")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(5000)
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)  # fmt: skip
        page.on("request", lambda of: troubles.append(of.url) if not of.url.startswith((server.url, "blob:")) else None)  # fmt: skip
        yield page, troubles
        browser.close()


@pytest.fixture
def page(tab, server):
    """Return the page as it is when it is opened."""
    page, troubles = tab
    server.key = ""
    server.bodies.clear()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(server.url)
    page.locator("#work").wait_for()
    yield page
    page.evaluate("sessionStorage.clear()")
    assert page.evaluate("window.broken") is None
    # A refused request is an error of the console too, and meant.
    assert [one for one in troubles if "the server responded with a status of 4" not in one] == []


def button(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def choose(page, label: str, value: str) -> None:
    page.get_by_label(label, exact=True).select_option(value)


def answer(page, text: str) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    button(page, "Answer")
    page.locator(".bars").first.wait_for()


def bars(page) -> dict[str, str]:
    rows = page.locator(".bars li").all()
    return {row.locator(".option").inner_text(): row.locator(".share").inner_text() for row in rows}


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def in_page(page, module: str, call: str, value: Any) -> Any:
    return page.evaluate(f"async (value) => (await import('./page/{module}.js')).{call}", value)


def test_bars_are_the_servers_probabilities_the_best_first(page):
    answer(page, TEXT)
    wanted = probabilities(TEXT, ["positive", "negative"])
    best_first = sorted(wanted, key=wanted.__getitem__, reverse=True)
    assert list(bars(page).items()) == [(name, percent(wanted[name])) for name in best_first]
    assert page.get_by_role("status").first.inner_text().startswith(f"words: {best_first[0]}, ")
    width = page.locator(".best .fill").evaluate("bar => bar.offsetWidth / bar.parentElement.clientWidth")  # fmt: skip
    assert width == pytest.approx(wanted[best_first[0]], abs=0.02)


def test_many_options_are_folded_and_come_when_asked_for(page):
    choose(page, "Model", "pairs")
    page.get_by_label("premise", exact=True).fill("It rains.")
    page.get_by_label("hypothesis", exact=True).fill("It is wet.")
    button(page, "Answer")
    page.locator(".bars").nth(1).wait_for()
    assert page.locator(".bars").nth(1).locator("li:visible").count() == 10
    button(page, "All 12")
    assert page.locator(".bars").nth(1).locator("li:visible").count() == 12


def test_two_runs_stand_side_by_side(page, server):
    choose(page, "Beside it", "head")
    answer(page, TEXT)
    page.locator(".bars").nth(1).wait_for()
    assert [body["model"] for _, body in server.bodies] == ["words", "head"]
    boxes = [section.bounding_box() for section in page.locator("#answers > section").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_each_word_is_shaded_by_what_leaving_it_out_does(page):
    text = "🙂 warm  ending, 漢字 slow"
    page.get_by_label("Text", exact=True).fill(text)
    button(page, "What each word does")
    page.locator(".shaded").wait_for()
    assert page.locator(".shaded").inner_text() == text
    full = probabilities(text, ["positive", "negative"])
    top = max(full, key=full.__getitem__)
    page.get_by_text("The same as a table").click()
    rows = [row.inner_text().split("\t") for row in page.locator("#words tbody tr").all()]
    assert [row[0] for row in rows] == text.split()
    for word, mark, row in zip(text.split(), page.locator(".shaded span").all(), rows, strict=True):
        start = text.index(word)
        without = probabilities(text[:start] + text[start + len(word) :], list(full))
        change = full[top] - without[top]
        level = sum(abs(change) >= step for step in (0.01, 0.05, 0.15, 0.4))
        kinds = (mark.get_attribute("class") or "").split()
        assert ("for" in kinds) == (level > 0 and change > 0)
        assert (f"level-{level}" in kinds) == (level > 0)
        assert ("flips" in kinds) == (without[top] < 0.5)
        assert row[1] == percent(without[top])
        assert row[2].replace("−", "-") == f"{100 * change:+.1f}"


def test_tokens_are_marked_by_their_part(page):
    page.get_by_label("Text", exact=True).fill(TEXT)
    button(page, "What each word does")
    page.get_by_text("The prompt as the model reads it").click()
    marked = page.locator(".tokens .token.text").all_inner_texts()
    assert "".join(marked).replace("·", " ").strip() == TEXT


@pytest.mark.parametrize(
    ("kind", "boxes", "wanted"),
    [
        ("choice", {"Name of option 1": "a b", "When option 1 applies": "first", "Name of option 2": "c"}, {"type": "choice", "criteria": {"a b": "first", "c": None}}),
        ("noul", {"When yes applies": "surely"}, {"type": "noul", "criteria": {"true": "surely", "false": None}}),
        ("score", {"Meaning of level 0": "low", "Meaning of level 1": "high"}, {"type": "score", "criteria": ["low", "high"]}),
    ],
)  # fmt: skip
def test_another_question_is_asked_as_it_was_written(page, server, kind, boxes, wanted):
    choose(page, "Question", "new")
    choose(page, "Kind", kind)
    page.get_by_label("What is asked").fill("Which?")
    for label, words in boxes.items():
        page.get_by_label(label).fill(words)
    answer(page, TEXT)
    question = wanted | {"instructions": "Which?"}
    assert server.bodies[-1][1]["questions"] == {"question": question}
    found = probabilities(TEXT, names_of(question))
    assert sorted(bars(page).values()) == sorted(percent(share) for share in found.values())


def test_a_question_that_is_not_whole_is_not_sent(page, server):
    choose(page, "Question", "new")
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_label("Name of option 1").fill("a")
    button(page, "Answer")
    assert page.get_by_role("alert").inner_text() == "Option 2 has no name: name it, or remove it."
    page.get_by_label("Name of option 2").fill("a ")
    button(page, "Answer")
    page.get_by_text("Two options are called “a”").wait_for()
    assert server.bodies == []


def test_a_run_that_knows_only_its_own_question_says_so(page):
    choose(page, "Model", "head")
    assert page.get_by_label("Question").locator("option").all_inner_texts() == ["its own: label"]
    assert "no others" in page.locator("#asks").inner_text()


def saved(page) -> list[list[str]]:
    with page.expect_download() as download:
        button(page, "Save as CSV")
    with open(download.value.path(), encoding="utf-8-sig", newline="") as stream:
        return list(csv.reader(stream))


def test_many_texts_are_a_table_and_a_file(page, server):
    texts = [f'{number}: "so, so", {MARKUP}' for number in range(40)]
    page.get_by_label("Many texts").check()
    page.get_by_label("Texts, one a line").fill("\n".join([*texts[:20], "", *texts[20:]]))
    button(page, "Answer all")
    page.get_by_text("40 of 40 answered.").wait_for()
    assert page.locator("#table tbody th").all_inner_texts() == texts
    assert [len(body["input"]) for _, body in server.bodies] == [32, 8]
    rows = saved(page)
    assert rows[0] == ["text", "label", "label: positive", "label: negative"]
    for text, row in zip(texts, rows[1:], strict=True):
        found = probabilities(text, ["positive", "negative"])
        assert row[:2] == [text, max(found, key=found.__getitem__)]
        assert [float(share) for share in row[2:]] == list(found.values())


def test_many_pairs_are_split_at_tabs(page):
    choose(page, "Model", "pairs")
    page.get_by_label("Many texts").check()
    box = page.get_by_label("Texts, one a line")
    box.fill("one\ttwo\nthree")
    button(page, "Answer all")
    assert "Text 2 has 1 fields" in page.get_by_role("alert").inner_text()
    box.fill("one\ttwo\nthree\tfour")
    button(page, "Answer all")
    page.get_by_text("2 of 2 answered.").wait_for()
    rows = saved(page)
    assert rows[0][:3] == ["premise", "hypothesis", "label"]
    assert rows[2][:2] == ["three", "four"]


def test_a_chat_is_streamed_and_remembers(page, server):
    choose(page, "Model", "writer")
    for number, message in enumerate(["漢字 🙂 " * 20 + MARKUP, "And?"], 1):
        page.get_by_label("Message").fill(message)
        button(page, "Send")
        page.get_by_text("Answered.").wait_for()
        assert page.locator(".assistant p").nth(number - 1).inner_text().strip() == f"You said: {message}".strip()  # fmt: skip
        page.get_by_text("Answered.").evaluate("status => (status.textContent = '')")
    _, body = server.bodies[-1]
    assert [said["role"] for said in body["messages"]] == ["user", "assistant", "user"]
    page.get_by_label("Message").fill("refuse")
    button(page, "Send")
    page.get_by_text("512 allowed").wait_for()
    assert page.get_by_label("Message").input_value() == "refuse"
    assert page.locator(".turn").count() == 4


def test_what_is_written_never_becomes_html(page):
    answer(page, MARKUP)
    button(page, "What each word does")
    page.locator(".shaded").wait_for()
    assert page.locator(".shaded").inner_text() == MARKUP
    assert page.locator("#work img, #work b").count() == 0


def test_errors_are_the_servers_words(page):
    page.get_by_label("Text", exact=True).fill("refuse this")
    button(page, "Answer")
    page.get_by_text("state: Too long: 600 tokens, 512 allowed.").wait_for()
    assert page.get_by_role("alert").is_visible()
    answer(page, TEXT)
    assert page.get_by_role("alert").count() == 0
    shapes = [{"error": {"message": "m"}}, {"error": "m"}, {"detail": "m"}, {"detail": [{"loc": ["body"], "msg": "m"}]}]  # fmt: skip
    assert [in_page(page, "format", "errorText(value, 'x')", shape) for shape in shapes] == ["m"] * 4  # fmt: skip
    assert in_page(page, "format", "errorText(value, 'x')", None) == "x"


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(page, server):
    server.key = "a secret"
    page.reload()
    page.get_by_label("This server asks for an API key").fill("a secret")
    page.keyboard.press("Enter")
    answer(page, TEXT)
    page.get_by_text("This request as code").click()
    for language in ("curl", "Python", "typesafe-sdk"):
        page.get_by_label(language, exact=True).check()
        code = page.get_by_role("group", name="Code").inner_text()
        assert "TASKFIT_API_KEY" in code
        assert server.key not in code
    stores = page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]")
    assert stores == [["a secret"], 0, ""]


def snippets(page, server: Server, path: str, body: Any, has_key: bool) -> dict[str, str]:
    request = {"url": server.url, "path": path, "body": body, "hasKey": has_key}
    return in_page(page, "snippets", "snippets(value)", request)


def run_code(language: str, code: str) -> None:
    if language == "curl":
        subprocess.run(["bash", "-euc", code], check=True, capture_output=True)
    else:
        exec(compile(code, language, "exec"), {})


QUESTION = {"type": "choice", "instructions": NASTY, "criteria": {NASTY: None, "$(id)": NASTY}}
REQUESTS = {
    "v1/systemone": {
        "model": "words",
        "state": {"text": NASTY, "list": []},
        "questions": {"q'$": QUESTION},
    },  # fmt: skip
    "classify": {"model": "words", "input": [NASTY, "b"]},
    "v1/chat/completions": {
        "model": "writer",
        "messages": [{"role": "user", "content": NASTY}],
        "temperature": 0.5,
        "max_tokens": 9,
        "stream": True,
    },  # fmt: skip
}


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("path", REQUESTS)
def test_copied_code_sends_what_the_page_would(page, server, capsys, monkeypatch, path, has_key):
    server.key = "s$'x" if has_key else ""
    monkeypatch.setenv("TASKFIT_API_KEY", server.key)
    found = snippets(page, server, path, REQUESTS[path], has_key)
    assert len(found) == (2 if path == "classify" else 3)
    for language, code in found.items():
        server.bodies.clear()
        run_code(language, code)
        [(asked, body)] = server.bodies
        wanted = dict(REQUESTS[path])
        if language == "Python":
            wanted.pop("stream", None)
        assert (asked, body) == (f"/{path}", wanted), language


def test_the_code_is_of_the_request_that_is_sent(page, server):
    answer(page, NASTY)
    page.get_by_text("This request as code").click()
    page.get_by_label("curl").check()
    sent = server.bodies[-1]
    run_code("curl", page.get_by_role("group", name="Code").text_content())
    assert server.bodies[-1] == sent


def show(page, view: str) -> None:
    if view == "chat":
        choose(page, "Model", "writer")
        page.get_by_label("Message").fill("x" * 300)
        button(page, "Send")
        page.get_by_text("Answered.").wait_for()
    elif view == "many":
        page.get_by_label("Many texts").check()
        page.get_by_label("Texts, one a line").fill("\n".join([TEXT, "x" * 300] * 3))
        button(page, "Answer all")
        page.get_by_text("6 of 6 answered.").wait_for()
    else:
        choose(page, "Question", "new" if view == "question" else "own")
        if view == "question":
            page.get_by_label("Name of option 1").fill("x" * 60)
            page.get_by_label("Name of option 2").fill("b")
        choose(page, "Beside it", "head")
        answer(page, f"{TEXT} {'x' * 300}")
        button(page, "What each word does")
        page.locator(".shaded").nth(1).wait_for()
        for summary in page.locator("summary").all():
            summary.click()


@pytest.mark.parametrize("view", ["one", "question", "many", "chat"])
def test_every_view_is_accessible_and_fits_a_phone(page, view):
    """No violation that axe finds, in both themes; no scrolling to the side at 390 and 320 pixels."""
    show(page, view)
    for width in (1280, 390, 320):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    if not AXE.exists():
        pytest.skip(f"no axe-core at {AXE}; npm install axe-core, or name it with AXE_CORE=PATH")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate("axe.run({resultTypes: ['violations']})")
        assert [(one["id"], one["nodes"][0]["html"], one["nodes"][0]["failureSummary"]) for one in found["violations"]] == []  # fmt: skip


def test_the_keyboard_is_enough_and_its_place_is_seen(page):
    choose(page, "Question", "new")
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.locator("body").evaluate("body => { body.tabIndex = -1; body.focus(); }")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        place = page.evaluate(
            """() => {
              const on = document.activeElement;
              const marked = on.type === "radio" ? on.nextElementSibling : on;
              return [on.id || on.ariaLabel || on.value || on.textContent, getComputedStyle(marked).outlineStyle];
            }"""
        )
        if not place[0] or place in seen:
            break
        seen.append(place)
    names = [name for name, _ in seen]
    assert {"model", "other", "field-0", "question", "kind", "instructions", "Name of option 1", "add", "explain"} <= set(names)  # fmt: skip
    assert [name for name, outline in seen if outline != "solid"] == []
    choose(page, "Question", "own")
    page.get_by_label("Text", exact=True).press("Control+Enter")
    page.locator(".bars").wait_for()


def test_nothing_moves_for_those_who_asked_for_rest(page):
    page.emulate_media(reduced_motion="reduce")
    answer(page, TEXT)
    durations = page.evaluate("[...document.querySelectorAll('*')].map(one => getComputedStyle(one).transitionDuration)")  # fmt: skip
    assert set(durations) == {"0s"}


def test_models_that_cannot_be_compared_are_not_offered(page):
    options = lambda label: page.get_by_label(label, exact=True).locator("option").all_inner_texts()  # noqa: E731
    assert options("Model") == [one["name"] for one in MODELS]
    assert options("Beside it") == ["nothing", "head"]
    choose(page, "Model", "pairs")
    assert page.locator("#beside").is_hidden()
