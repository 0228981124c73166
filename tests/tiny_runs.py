"""Tiny finished runs of many kinds over one base, as a server holds them together."""

import json
from pathlib import Path

import tiny
from taskfit.runs.fit import fit
from taskfit.settings_file import load_settings
from tiny_settings import settings_for

QUESTIONS = """
name: toy
text: text
questions:
  - {name: mood, ask: "Mood?", kind: choice, options: [good, bad]}
  - {name: park, ask: "Is it so?", kind: yes_no, label: outside}
  - {name: stars, ask: "How many?", kind: score, options: [0, 1, 2]}
"""
KINDS = {
    "words": ["method.name=label_words"],
    "few-shot": ["method.name=in_context", "method.num_demonstrations=2", "method.num_orders=2"],
    "head": ["method.name=head"],
    "blend": ["method.name=head", "method.blend=[model]", "adapter.layers=1"],
    "text": ["method.name=label_text"],
    "whole": ["method.name=label_words", "adapter.weights=full"],
    "tfidf": ["method.name=tfidf"],
}


def fit_runs(folder: Path, model: Path) -> dict[str, Path]:
    """Fit a run of each kind, one of several questions and a generator; return their folders."""
    train = tiny.write_csv(folder / "train.csv", tiny.toy_examples(8))
    shared = [
        "data.validation_fraction=0",
        f"model.name={model}",
        "model.dtype=float32",
        "model.device=cpu",
        "training.epochs=2",
        "training.batch_size=4",
        "training.learning_rate=0.05",
        "training.tensorboard=false",
    ]
    runs = {}
    for name, own in KINDS.items():
        given = [f"data.train={train}", *shared, "method.num_demonstrations=0"]
        runs[name] = folder / name
        fit(settings_for(given, own), runs[name])
    (folder / "questions.yaml").write_text(QUESTIONS)
    rows = [
        {**e.texts, "mood": e.label, "outside": ("yes", "no")[i // 2 % 2], "stars": str(i % 3)}
        for i, e in enumerate(tiny.toy_examples(8))
    ]
    (folder / "several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    several = [f"task.name={folder / 'questions.yaml'}", f"data.train={folder / 'several.jsonl'}"]
    runs["several"] = folder / "several"
    fit(settings_for([*several, *shared]), runs["several"])
    pairs = [{"instruction": f"Is the {n} warm?", "output": "It is é."} for n in tiny.NOUNS[:4]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    tuned = ["method.name=sft", f"data.train={folder / 'rows.jsonl'}", "tuning.num_samples=0"]
    tuned += ["tuning.chat_template=headings", "tuning.max_new_tokens=8"]
    runs["writer"] = folder / "writer"
    fit(load_settings(overrides=[*tuned, *shared]), runs["writer"])
    return runs
