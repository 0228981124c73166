"""Every command with every method: it works, or ends in one message and exit code 2."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import yaml

import tiny
from taskfit.curate.settings import NearStep
from taskfit.method_settings import METHOD_SETTINGS
from taskfit.methods.table import METHODS
from taskfit.unread import is_read

SETS = (
    "model.dtype=float32",
    "model.device=cpu",
    "model.compile=off",
    "training.tensorboard=false",
    "training.max_steps=2",
    "data.validation_fraction=0.4",  # a search wants 30 texts
)
NUM_TEST = 12
TUNING = ("sft", "dpo")
KINDS = (*METHODS, "auto", "questions")
RENDERED = ("auto", "sft", "questions")
# What each command refuses, though the run itself works.
REFUSED = {
    "evaluate": TUNING,
    "predict": TUNING,
    "inspect": (*TUNING, "questions"),
    # The prompts of the other kinds list no options.
    "inspect --run": tuple(kind for kind in KINDS if kind != "questions"),
    "audit": (*TUNING, "questions"),
    "plan": ("questions", "majority", "tfidf", "encoder", "remote"),
    "compare": (*TUNING, "questions"),
    "search": (*TUNING, "questions", "remote", "majority", "tfidf"),
    "export": ("probe", "knn", "majority", "tfidf", "encoder", "remote", "in_context", "questions"),
}
QUESTIONS = {
    "name": "asked",
    "text": ["text"],
    "questions": [
        {"name": "mood", "ask": "Is it?", "kind": "choice", "options": ["good", "bad"],
         "label": "label"},
        {"name": "park", "ask": "In the park?", "kind": "yes_no"},
    ],
}  # fmt: skip


def write_inputs(folder: Path) -> None:
    for name, count, offset in (("train", 80, 0), ("test", NUM_TEST, 200)):
        examples = tiny.toy_examples(count, offset=offset)
        rows = [{"text": e.texts["text"], "label": e.label} for e in examples]
        table = pd.DataFrame(rows)
        table["park"] = ["yes" if i % 3 else "no" for i in range(count)]
        table.to_csv(folder / f"{name}.csv", index=False)
        texts = [{"prompt": r["text"], "completion": r["label"]} for r in rows]
        pairs = [{"prompt": r["text"], "chosen": r["label"], "rejected": "what?"} for r in rows]
        for kind, lines in (("sft", texts), ("dpo", pairs)):
            path = folder / f"{name}-{kind}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [{"text": f"{e.texts['text']} {i}"} for i, e in enumerate(tiny.toy_examples(9))]
    pd.DataFrame(texts).to_csv(folder / "pool.csv", index=False)
    (folder / "asked.yaml").write_text(yaml.safe_dump(QUESTIONS, sort_keys=False))


def arguments_of(kind: str, model: Path, encoder: Path) -> list[str]:
    sets = list(SETS)
    if kind in TUNING:
        sets += ["tuning.num_samples=1", "tuning.max_new_tokens=2", "tuning.chat_template=plain"]
    else:
        sets += ["method.retriever=model", f"method.encoder={encoder}"]
        sets += [
            "remote.base_url=http://127.0.0.1:9/v1",
            "remote.model=none",
            "remote.max_retries=0",
        ]
    if kind == "auto":
        sets.append(f"method.blend=[model, {encoder}]")
    method = METHOD_SETTINGS["label_words" if kind == "questions" else kind]
    sets = [one for one in sets if is_read(one.partition("=")[0], method)]
    end = f"-{kind}.jsonl" if kind in TUNING else ".csv"
    given = ["--data", f"train{end}", "--test", f"new=test{end}", "--model", str(model)]
    if kind == "questions":
        given += ["--task", "asked.yaml"]
    else:
        sets.append(f"method.name={kind}")
        given += [] if kind in TUNING else ["--text", "text"]
    return [*given, *(part for one in sets for part in ("--set", one))]


def without(arguments: Sequence[str], flag: str) -> list[str]:
    place = arguments.index(flag)
    return [*arguments[:place], *arguments[place + 2 :]]


@pytest.mark.parametrize(
    "kind",
    # One of each kind of report is rendered.
    [pytest.param(k, marks=pytest.mark.pictures) if k in RENDERED else k for k in KINDS],
)
def test_a_command_works_or_says_why_not(
    shell,
    model_folder: Path,
    encoder_folder: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An audit looks for near copies with a packaged encoder, whatever the method.
    near = NearStep(step="near", encoder=str(encoder_folder))
    monkeypatch.setattr("taskfit.labels.audit.NEAR", near)
    write_inputs(shell.folder)
    given = arguments_of(kind, model_folder, encoder_folder)
    works = kind != "remote"  # nothing answers there

    def check(name: str, command: Sequence[str], *, refused: bool) -> None:
        code, out, err = shell(*command)
        assert code == (2 if refused else 0), f"{name} {kind}: {code}\n{out}\n{err}"
        assert "Traceback" not in err + out, f"{name} {kind}\n{err}"
        if refused:
            assert err.startswith("taskfit: "), f"{name} {kind}\n{err}"

    def refuses(name: str) -> bool:
        return kind in REFUSED.get(name, ()) or not works

    check("fit", ["fit", *given, "--out", "run"], refused=not works)
    check("inspect", ["inspect", *without(given, "--test")], refused=works and refuses("inspect"))
    tried = ["inspect", "--run", "run"]
    check("inspect --run", tried, refused=refuses("inspect --run"))
    check("audit", ["audit", *given, "--out", "audited"], refused=refuses("audit"))
    check("plan", ["plan", *without(given, "--test")], refused=kind in REFUSED["plan"])
    check("resume", ["fit", "--resume", "run"], refused=True)  # it is finished, or never began
    data = "test.csv"
    check("report", ["report", "run"], refused=not works)
    check("evaluate", ["evaluate", "run", "--data", data, "--name", "again"],
          refused=refuses("evaluate"))  # fmt: skip
    check("predict", ["predict", "run", data, "-o", "out.csv"], refused=refuses("predict"))
    pool = ["next", "run", "pool.csv", "-n", "4", "--features", str(encoder_folder)]
    check("next", [*pool, "-o", "to_label.csv"], refused=refuses("predict"))
    check("export", ["export", "run", "-o", "exported", "--merge"], refused=refuses("export"))
    compare = ["compare", *given, "--methods", kind, "--seeds", "1", "--sizes", "12"]
    if works:
        check("compare", [*compare, "--out", "grid"], refused=kind in REFUSED["compare"])
    else:  # what its runs fail of is told in its table
        code, out, err = shell(*compare, "--out", "grid")
        assert (code, "failed: " in out, "Traceback" in out + err) == (2, True, False)
    search = ["--search", "2", "--out", "searched"]
    check("search", ["fit", *given, *search], refused=refuses("search"))
    if works and kind not in TUNING:
        assert len(pd.read_csv(shell.folder / "out.csv")) == NUM_TEST
