"""The playground as a person uses it, in headless Chromium; the engine behind it has no model."""

import csv
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_engine import probabilities
from live_server import serving
from page_server import CARDS, FEELING, AskedEngine

from taskfit.serve.work import GenerateRequest, Option, Question, TextsRequest

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))
KEY = "a$'key"
TEXT = "The first half is slow, but the ending is warm."
LONG_WORD = "x" * 300
MARKUP = '<img src=x onerror="window.broken = 1"><b>bold</b>'
# Quotes of both kinds, what shells and Python read as more, line ends, characters of every width.
NASTY = 'It\'s "$HOME" `id` \\n \\ {x} %s ! #\n\ttab\r\n\'\'\'""" é 漢 🙂 \u2028 \x7f end\\'


@dataclass
class Server:
    """Where a server is, its engine, and what that was asked."""

    url: str
    engine: AskedEngine

    @property
    def asked(self) -> list[Any]:
        return self.engine.asked


@contextmanager
def on_loopback(api_key: str | None = None) -> Iterator[Server]:
    engine = AskedEngine()
    with serving(engine, api_key=api_key) as client:
        yield Server(str(client.base_url).rstrip("/") + "/", engine)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with on_loopback() as found:
        yield found


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """Return a server that asks for a key."""
    with on_loopback(KEY) as found:
        yield found


@pytest.fixture(scope="module")
def tab():
    """Return one tab for all tests, and what went wrong in it or came from elsewhere."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM}; name one with CHROMIUM=PATH")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(5000)
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda said: said.type == "error" and troubles.append(said.text))
        page.on("request", lambda of: "127.0.0.1" not in of.url and troubles.append(of.url))
        yield page, troubles
        browser.close()


@pytest.fixture
def page(tab, server: Server):
    """Return the page as it is when it is opened."""
    page, troubles = tab
    server.asked.clear()
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


def options(page, label: str) -> list[str]:
    return page.get_by_label(label, exact=True).locator("option").all_inner_texts()


def answer(page, text: str = TEXT) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    button(page, "Answer")
    page.locator(".bars").first.wait_for()


def explain(page, text: str = TEXT) -> list[Any]:
    """Ask what each word does; return what the server answered."""
    page.get_by_label("Text", exact=True).fill(text)
    with page.expect_response("**/explain") as response:
        button(page, "What each word does")
    page.locator(".shaded").first.wait_for()
    return response.value.json()


def alert(page, words: str) -> None:
    page.get_by_role("alert").filter(has_text=words).wait_for()


def bars(page) -> dict[str, str]:
    rows = page.locator(".bars li").all()
    return {row.locator(".option").inner_text(): row.locator(".share").inner_text() for row in rows}


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def in_page(page, module: str, call: str, value: Any) -> Any:
    return page.evaluate(f"async (value) => (await import('./page/{module}.js')).{call}", value)


def test_bars_are_the_servers_probabilities_the_best_first(page):
    answer(page)
    wanted = probabilities(TEXT, FEELING)
    best_first = sorted(wanted, key=wanted.__getitem__, reverse=True)
    assert list(bars(page).items()) == [(name, percent(wanted[name])) for name in best_first]
    assert page.locator("#status").inner_text().startswith(f"words: {best_first[0]}, ")
    fill = page.locator(".best .fill")
    width = fill.evaluate("bar => bar.offsetWidth / bar.parentElement.clientWidth")
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
    answer(page)
    page.locator(".bars").nth(1).wait_for()
    assert {request.model for request in server.asked} == {"head", "words"}
    boxes = [section.bounding_box() for section in page.locator("#answers > section").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_a_bare_model_beside_a_run_is_asked_the_runs_question(page, server):
    choose(page, "Beside it", "tiny")
    answer(page)
    page.locator(".bars").nth(1).wait_for()
    mine, theirs = server.asked
    assert mine.questions == theirs.questions
    choose(page, "Beside it", "")
    choose(page, "Model", "tiny")
    assert options(page, "Question") == ["another question"]
    assert page.get_by_label("What is asked").is_visible()
    assert page.get_by_label("Text", exact=True).input_value() == TEXT


def test_models_that_read_other_columns_are_not_offered_beside(page):
    assert options(page, "Model") == [card.name for card in CARDS]
    assert options(page, "Beside it") == ["nothing", "head", "tiny"]
    choose(page, "Model", "pairs")
    assert page.locator("#beside").is_hidden()


def test_each_word_is_shaded_by_what_leaving_it_out_does(page):
    text = "🙂 warm  ending, 漢字 slow"
    found = explain(page, text)
    assert page.locator(".shaded").inner_text() == text
    top = max(found["probabilities"], key=found["probabilities"].__getitem__)
    page.get_by_text("The same as a table").click()
    rows = [row.inner_text().split("\t") for row in page.locator("#words tbody tr").all()]
    assert [row[0] for row in rows] == [word["text"] for word in found["words"]]
    marks = page.locator(".shaded span").all()
    for word, mark, row in zip(found["words"], marks, rows, strict=True):
        without = word["probabilities"][top]
        factor = odds(found["probabilities"][top]) / odds(without)
        level = sum(max(factor, 1 / factor) >= step for step in (1.5, 2, 4, 10))
        kinds = (mark.get_attribute("class") or "").split()
        assert ("for" in kinds) == (level > 0 and factor > 1)
        assert (f"level-{level}" in kinds) == (level > 0)
        assert ("flips" in kinds) == (without < 0.5)
        assert row[1] == percent(without)
        assert row[2] == (f"÷ {factor:.1f}" if factor >= 1 else f"× {1 / factor:.1f}")


def odds(share: float) -> float:
    return share / (1 - share)


def test_a_sure_answer_is_shaded_by_its_odds_and_rounding_is_not(page):
    for full, without, level in [
        (0.999, 0.996, 3),
        (0.5, 0.61, 1),
        (0.5, 0.5, 0),
        (1.0, 1 - 1e-6, 0),
        (1.0, 0.0, 4),
    ]:
        shares = [{"a": share, "b": 1 - share} for share in (full, without)]
        found = in_page(page, "format", "effect('a', value[0], {probabilities: value[1]})", shares)
        assert found["level"] == level, (full, without)


def test_of_several_columns_each_is_shaded(page):
    choose(page, "Model", "pairs")
    choose(page, "Question", "own topic")
    page.get_by_label("premise", exact=True).fill("It rains.")
    page.get_by_label("hypothesis", exact=True).fill("It is wet.")
    button(page, "What each word does")
    page.locator(".shaded").nth(1).wait_for()
    assert page.locator(".shaded").all_inner_texts() == ["It rains.", "It is wet."]
    assert page.locator(".shaded span").count() == 5


def test_tokens_are_marked_by_their_part(page):
    explain(page)
    page.get_by_text("The prompt as the model reads it").click()
    marked = page.locator(".tokens .token.text").all_inner_texts()
    assert "".join(marked).replace("·", " ").strip() == TEXT


@pytest.mark.parametrize(
    ("boxes", "wanted"),
    [
        (
            {"Name of option 1": "a b", "When option 1 applies": "first", "Name of option 2": "c"},
            Question("choice", "Which?", (Option("a b", "first"), Option("c"))),
        ),
        (
            {"When yes applies": "surely"},
            Question("noul", "Which?", (Option("true", "surely"), Option("false"))),
        ),
        (
            {"Meaning of level 0": "low", "Meaning of level 1": "high"},
            Question("score", "Which?", (Option("0", "low"), Option("1", "high"))),
        ),
    ],
)
def test_another_question_is_asked_as_it_was_written(page, server, boxes, wanted):
    choose(page, "Question", "new")
    choose(page, "Kind", wanted.kind)
    page.get_by_label("What is asked").fill("Which?")
    for label, words in boxes.items():
        page.get_by_label(label).fill(words)
    answer(page)
    [request] = server.asked
    assert request.questions == {"question": wanted}
    names = {"choice": {"a b", "c"}, "noul": {"yes", "no"}, "score": {"0: low", "1: high"}}
    found = bars(page)
    assert set(found) == names[wanted.kind]
    assert sum(float(share.removesuffix(" %")) for share in found.values()) == pytest.approx(100)


def test_a_question_that_is_not_whole_is_not_sent(page, server):
    choose(page, "Question", "new")
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_label("Name of option 1").fill("a")
    button(page, "Answer")
    alert(page, "Option 2 has no name: name it, or remove it.")
    page.get_by_label("Name of option 2").fill("a ")
    button(page, "Answer")
    alert(page, "Two options are called “a”")
    assert server.asked == []


def test_a_run_that_knows_only_its_own_question_says_so(page):
    choose(page, "Model", "head")
    assert options(page, "Question") == ["its own: label"]
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
    assert [len(request.texts) for request in server.asked] == [32, 8]
    rows = saved(page)
    assert rows[0] == ["text", "label", "label: positive", "label: negative"]
    for text, row in zip(texts, rows[1:], strict=True):
        found = probabilities(text, FEELING)
        assert row[:2] == [text, max(found, key=found.__getitem__)]
        assert [float(share) for share in row[2:]] == pytest.approx(list(found.values()))


def test_many_pairs_are_split_at_tabs_and_get_every_question(page):
    choose(page, "Model", "pairs")
    page.get_by_label("Many texts").check()
    box = page.get_by_label("Texts, one a line")
    box.fill("one\ttwo\nthree")
    button(page, "Answer all")
    alert(page, "Text 2 has 1 fields")
    box.fill("one\ttwo\nthree\tfour")
    button(page, "Answer all")
    page.get_by_text("2 of 2 answered.").wait_for()
    rows = saved(page)
    assert rows[0][:3] == ["premise", "hypothesis", "label"]
    assert rows[0][6:8] == ["topic", "topic: topic 0"]
    assert rows[2][:2] == ["three", "four"]
    assert rows[2][6] in {f"topic {n}" for n in range(12)}


def test_what_is_answered_before_an_error_stays(page):
    page.get_by_label("Many texts").check()
    page.get_by_label("Texts, one a line").fill("\n".join(["short"] * 40 + ["long " * 70]))
    button(page, "Answer all")
    alert(page, "tokens are more than 64")
    page.get_by_text("32 of 41 answered.").wait_for()
    assert page.locator("#table tbody tr").count() == 32


def test_a_chat_is_streamed_and_remembers(page, server):
    choose(page, "Model", "writer")
    page.get_by_label("Most tokens").fill("7")
    said: list[dict[str, str]] = []
    for number, message in enumerate([f"漢字 🙂 {MARKUP}", "And then?"]):
        page.get_by_label("Message").fill(message)
        button(page, "Send")
        page.locator("#talk:not([aria-busy]) .assistant").nth(number).wait_for()
        said.append({"role": "user", "content": message})
        pieces = AskedEngine().generate(GenerateRequest("writer", said, max_tokens=7))
        wanted = "".join(piece.text for piece in pieces)
        assert page.locator(".assistant p").nth(number).text_content() == wanted
        said.append({"role": "assistant", "content": wanted})
    assert server.asked[-1].prompt == said[:-1]
    assert page.locator("#status").inner_text() == "Ended at the most tokens."


def test_what_is_written_when_a_chat_is_stopped_stays(page, server, monkeypatch):
    monkeypatch.setattr(server.engine, "piece_seconds", 0.02)
    choose(page, "Model", "writer")
    page.get_by_label("Message").fill("a b c")
    button(page, "Send")
    page.locator(".assistant p").filter(has_text="c b").wait_for()
    button(page, "Stop")
    page.get_by_text("Stopped.").wait_for()
    kept = page.locator(".assistant p").text_content()
    for _ in range(200):
        if "a b c" in server.engine.closed:
            break
        page.wait_for_timeout(20)
    else:
        pytest.fail("the server still writes")
    page.get_by_label("Most tokens").fill("2")
    page.get_by_label("Message").fill("d")
    button(page, "Send")
    page.get_by_text("Ended at the most tokens.").wait_for()
    assert [said["content"] for said in server.asked[-1].prompt] == ["a b c", kept, "d"]
    page.get_by_label("Chat").check()
    button(page, "Start over")
    assert page.locator(".turn").count() == 0


@pytest.mark.parametrize(
    ("message", "most", "words"),
    [("explode a b", "7", "failed"), ("a b", "99999", "4,096"), ("a b", "", "a number is needed")],
)
def test_a_message_that_is_not_answered_stands_in_the_form_again(page, message, most, words):
    choose(page, "Model", "writer")
    page.get_by_label("Most tokens").fill(most)
    page.get_by_label("Message").fill(message)
    button(page, "Send")
    alert(page, words)
    assert page.get_by_label("Message").input_value() == message
    assert page.locator(".turn").count() == 0


def test_events_are_read_whatever_the_network_cuts(page):
    """Pieces of any size give the same events, within characters and line ends too."""
    script = """async (sizes) => {
      const data = (text) => `data: ${JSON.stringify({ text })}\\r\\n\\r\\n`;
      const sent = `: hi\\n\\n${data("漢🙂")}${data("é")}data: [DONE]\\n\\n`;
      const bytes = new TextEncoder().encode(sent);
      const { events } = await import("./page/api.js");
      const all = [];
      for (const size of sizes) {
        window.fetch = async () => new Response(new ReadableStream({ start(stream) {
          for (let i = 0; i < bytes.length; i += size) stream.enqueue(bytes.slice(i, i + size));
          stream.close();
        } }));
        const found = [];
        for await (const event of events("x", { body: {} })) found.push(event.text);
        all.push(found.join("|"));
      }
      return all;
    }"""
    assert set(page.evaluate(script, list(range(1, 40)))) == {"漢🙂|é"}


def test_what_is_written_never_becomes_html(page):
    answer(page, MARKUP)
    explain(page, MARKUP)
    assert page.locator(".shaded").inner_text() == MARKUP
    assert page.locator("#work img, #work b").count() == 0


def test_a_runs_own_questions_are_answered_by_its_own_weights(page, engine):
    """Of every kind of question; and what each word does is of the same answer."""
    text = "the garden is warm and bright"
    with serving(lambda: engine) as client:
        page.goto(str(client.base_url))
        for name in ("words", "several"):
            [found] = engine.score([engine.encode(TextsRequest(name, [text]))])
            wanted = [sorted(map(percent, of.values())) for of in found.probabilities[0].values()]
            choose(page, "Model", name)
            answer(page, text)
            lists = page.locator(".bars").all()
            assert [sorted(one.locator(".share").all_inner_texts()) for one in lists] == wanted
            first = next(iter(found.probabilities[0].values()))
            assert explain(page, text)["probabilities"] == pytest.approx(first, abs=1e-5)


def test_errors_are_the_servers_words(page):
    page.get_by_label("Text", exact=True).fill("word " * 70)
    button(page, "Answer")
    alert(page, "71 tokens are more than 64.")
    answer(page)
    assert page.get_by_role("alert").count() == 0
    listed = {"detail": [{"loc": ["body", "a", 0], "msg": "m"}, {"loc": ["body"], "msg": "n"}]}
    for shape, words in [
        ({"error": {"message": "m"}}, "m"),
        ({"error": "m", "error_type": "t"}, "m"),
        ({"detail": "m"}, "m"),
        (listed, "a.0: m\nn"),
        (None, "x"),
    ]:
        assert in_page(page, "format", "errorText(value, 'x')", shape) == words


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(page, locked):
    page.goto(locked.url)
    page.get_by_label("This server asks for an API key").wait_for()
    assert page.get_by_role("alert").count() == 0
    for key in ("wrong", KEY):
        page.get_by_label("This server asks for an API key").fill(key)
        page.keyboard.press("Enter")
        if key != KEY:
            alert(page, "key")
    answer(page)
    page.get_by_text("This request as code").click()
    for language in ("curl", "Python", "typesafe-sdk"):
        page.get_by_label(language, exact=True).check()
        code = page.get_by_role("group", name="Code").inner_text()
        assert "TASKFIT_API_KEY" in code
        assert KEY not in code
    stores = page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]")
    assert stores == [[KEY], 0, ""]


def run_code(language: str, code: str) -> None:
    if language == "curl":
        subprocess.run(["bash", "-euc", code], check=True, capture_output=True)
    else:
        exec(compile(code, language, "exec"), {})


QUESTION = {"type": "choice", "instructions": NASTY, "criteria": {NASTY: None, "$(id)": NASTY}}
STATE = {"text": NASTY, "list": [], "more": [1, {"a": True, "b": None}]}
REQUESTS: dict[str, dict[str, Any]] = {
    "v1/systemone": {"model": "words", "state": STATE, "questions": {"q'$": QUESTION}},
    "classify": {"model": "words", "input": [NASTY, "b"]},
    "v1/chat/completions": {
        "model": "writer",
        "messages": [{"role": "user", "content": NASTY}],
        "temperature": 0.5,
        "max_tokens": 9,
        "stream": True,
    },
}


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("path", REQUESTS)
def test_copied_code_asks_what_the_page_asks(page, request, monkeypatch, path, has_key):
    server: Server = request.getfixturevalue("locked" if has_key else "server")
    monkeypatch.setenv("TASKFIT_API_KEY", KEY)
    page.goto(server.url)
    if has_key:
        page.evaluate("async (key) => (await import('./page/api.js')).setKey(key)", KEY)
    script = "async ([path, body]) => (await import('./page/api.js')).call(path, { body })"
    page.evaluate(
        script, [path, {key: value for key, value in REQUESTS[path].items() if key != "stream"}]
    )
    wanted = server.asked[-1]
    asked = {"url": server.url, "path": path, "body": REQUESTS[path], "hasKey": has_key}
    found = in_page(page, "snippets", "snippets(value)", asked)
    assert len(found) == (2 if path == "classify" else 3)
    for language, code in found.items():
        server.asked.clear()
        run_code(language, code)
        assert server.asked == [wanted], language


def test_the_code_is_of_the_request_that_is_sent(page, server):
    answer(page, NASTY)
    page.get_by_text("This request as code").click()
    page.get_by_label("curl").check()
    [sent] = server.asked
    run_code("curl", page.get_by_role("group", name="Code").text_content())
    assert server.asked == [sent, sent]


def show(page, view: str) -> None:
    """Fill a view with what is long, and open all that opens."""
    if view == "chat":
        choose(page, "Model", "writer")
        page.get_by_label("Message").fill(LONG_WORD)
        page.get_by_label("Most tokens").fill("2")
        button(page, "Send")
        page.locator("#talk:not([aria-busy]) .assistant").wait_for()
    elif view == "many":
        page.get_by_label("Many texts").check()
        page.get_by_label("Texts, one a line").fill(f"{TEXT}\n{LONG_WORD}")
        button(page, "Answer all")
        page.get_by_text("2 of 2 answered.").wait_for()
    else:
        if view == "question":
            choose(page, "Question", "new")
            page.get_by_label("Name of option 1").fill(LONG_WORD)
            page.get_by_label("Name of option 2").fill("b")
        else:
            choose(page, "Beside it", "head")
        answer(page, f"{TEXT} {LONG_WORD}")
        explain(page, f"{TEXT} {LONG_WORD}")
    for summary in page.locator("summary").all():
        summary.click()


@pytest.mark.parametrize("view", ["one", "question", "many", "chat"])
def test_every_view_is_accessible_and_fits_a_phone(page, view):
    """Axe finds nothing in either theme; nothing is beyond the side at 390 and 320 pixels."""
    show(page, view)
    for width in (1280, 390, 320):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    if not AXE.exists():
        pytest.skip(f"no axe-core at {AXE}; npm install axe-core, or name it with AXE_CORE=PATH")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []


PLACE = """() => {
  const on = document.activeElement;
  const marked = on.type === "radio" ? on.nextElementSibling : on;
  const name = on.id || on.ariaLabel || on.value || on.textContent;
  return [on === document.body ? null : name, getComputedStyle(marked).outlineStyle];
}"""


def test_the_keyboard_is_enough_and_its_place_is_seen(page):
    choose(page, "Question", "new")
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.locator("body").evaluate("body => { body.tabIndex = -1; body.focus(); }")
    seen = {}
    for _ in range(40):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(PLACE)
        if name is None:
            break
        seen[name] = outline
    controls = {"model", "other", "one", "field-0", "question", "kind", "instructions", "add"}
    assert controls | {"Name of option 1", "Answer", "explain"} <= set(seen)
    assert set(seen.values()) == {"solid"}
    choose(page, "Question", "own")
    page.get_by_label("Text", exact=True).press("Control+Enter")
    page.locator(".bars").wait_for()


def test_nothing_moves_for_those_who_asked_for_rest(page):
    script = (
        "[...document.querySelectorAll('*')].map(one => getComputedStyle(one).transitionDuration)"
    )
    answer(page)
    assert set(page.evaluate(script)) > {"0s"}
    page.emulate_media(reduced_motion="reduce")
    assert set(page.evaluate(script)) == {"0s"}
    page.emulate_media(reduced_motion="no-preference")


def test_the_policy_lets_in_nothing_but_the_servers_own(page, server):
    rules = page.goto(server.url).headers["content-security-policy"]
    assert "default-src 'none'" in rules
    assert "script-src 'self'" in rules
    assert "unsafe" not in rules
