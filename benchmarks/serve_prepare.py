"""What the servers of `serve.py` are given: texts, answers to expect, and models for the peers.

    python benchmarks/serve_prepare.py --run RUN --folder FOLDER

The run is one of label words of one token each. Written are `texts.json` (made-up sentences, all
different), `prepared.json` (prompt, label words, probabilities as `taskfit predict` gives them),
`merged/` (the run as a plain model, with a decision config), and `decisionformer/` (a checkpoint of
that package after two steps on made-up labels: its answers mean nothing, its work is that of any).
What is there already is kept.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

NUM_TEXTS = 512
QUESTION = "Is the text positive or negative?"
OPENINGS = ("Honestly,", "After two weeks,", "For the money,", "As my sister said,", "In the end,")
THINGS = ("the kettle", "this train line", "our new lamp", "the hotel by the harbour", "the choir")
VERBS = ("has been", "turned out", "looks", "seems", "stayed", "was from the first day on")
MANNERS = ("rather", "truly", "hardly", "a little", "surprisingly", "without any doubt")
WORDS = ("pleasant", "noisy", "dull", "cheerful", "careless", "splendid", "tiresome", "warm")
ENDINGS = (
    "and I would say so again",
    "although the weather did not help",
    "which nobody had told us before",
    "so we shall see next year",
    "and that is all there is to it",
)
PARTS = (OPENINGS, THINGS, VERBS, MANNERS, WORDS, ENDINGS)


def sentences(count: int, *, seed: int = 0) -> list[str]:
    """Return made-up sentences, all different."""
    random_numbers, found = random.Random(seed), dict[str, None]()
    while len(found) < count:
        words = " ".join(random_numbers.choice(part) for part in PARTS)
        found[f"{words}, day {random_numbers.randrange(1, 400)}."] = None
    return list(found)


def describe_run(run: Path, texts: list[str]) -> dict[str, Any]:
    """Return prompt, label words and answers of a run.

    Raises:
        SystemExit: If it is no run of label words of one token, or has several text columns.
    """
    from taskfit.data import Example
    from taskfit.export.prompt import find_prompt
    from taskfit.runs.load import load_classifier

    classifier = load_classifier(run)
    if classifier.method.settings.name != "label_words" or len(classifier.task.text) != 1:
        raise SystemExit(f"{run}: give a run of label_words with one text column.")
    task, tokenizer = classifier.task, classifier.method.context.model.tokenizer
    examples = [Example(str(i), {task.text[0]: text}) for i, text in enumerate(texts)]
    prompt, _ = find_prompt(classifier.method.encoder, tokenizer, examples[:4])
    words = [label.words[0] for label in task.labels]
    if any(len(tokenizer(word)["input_ids"]) != 1 for word in words):
        raise SystemExit(f"{run}: label words of one token each, please; they are {words}.")
    before, after = prompt.fill({task.text[0]: "\0"}).split("\0")
    return {
        "prompt": [before, after],
        "words": words,
        "labels": list(task.label_names),
        "prompt_tokens": len(tokenizer(before + texts[0] + after)["input_ids"]),
        "probabilities": classifier.probabilities(examples).tolist(),
    }


def write_decision_config(folder: Path, prepared: dict[str, Any]) -> None:
    """Let `transformers serve` ask the run's question as the run does, others in words."""
    before, after = (json.dumps(part) for part in prepared["prompt"])
    own = f"{{{{ {before} ~ state ~ {after} }}}}"
    other = '{{ state ~ "\\n\\n" ~ question.instructions ~ "\\nAnswer:" }}'
    template = f'{{% if question.type == "choice" %}}{own}{{% else %}}{other}{{% endif %}}'
    labels = {"choice": prepared["words"], "noul": [" yes", " no"]}
    config = {"labels": labels, "chat_template": template, "noul_options": ["true", "false"]}
    (folder / "decision_config.json").write_text(json.dumps(config), encoding="utf-8")


def train_decisionformer(folder: Path, model: Path, texts: list[str]) -> None:
    """Write a checkpoint of its code readout, merged, after two steps."""
    from decisionformer.config import load_config
    from decisionformer.trainer import Trainer

    question = {"type": "choice", "instructions": QUESTION}
    question["criteria"] = {"negative": None, "positive": None}
    rows = [
        {
            "id": str(place),
            "state": text,
            "questions": {"label": question},
            "gold": {"label": ("negative", "positive")[place % 2]},
        }
        for place, text in enumerate(texts)
    ]
    data = folder / "decisionformer.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    head = {"type": "code_readout"}
    config = {
        "model": {"backbone": str(model), "attention": "causal", "head": head},
        "finetune": {"mode": "lora", "model_dtype": "bfloat16", "export": "merged"},
        "data": {"train": str(data)},
        "train": {
            "output_dir": str(folder / "decisionformer"),
            "max_steps": 2,
            "global_batch_size": 4,
            "micro_batch_size": 4,
            "mixed_precision": "no",
            "eval_every": None,
            "save_every": None,
        },
    }
    Trainer(load_config(config)).train()


def prepare(run: Path, folder: Path) -> None:
    """Write what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = sentences(NUM_TEXTS)
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    stored = folder / "prepared.json"
    if not stored.exists():
        stored.write_text(json.dumps(describe_run(run, texts)), encoding="utf-8")
    if not (folder / "merged").exists():
        command = [sys.executable, "-m", "taskfit", "export", str(run), "--merge"]
        subprocess.run([*command, "-o", str(folder / "merged")], check=True)
    write_decision_config(folder, json.loads(stored.read_text(encoding="utf-8")))
    if not list((folder / "decisionformer").glob("*/config.json")):
        train_decisionformer(folder, folder / "merged", texts[:8])


def main() -> None:
    """Prepare."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    prepare(arguments.run.resolve(), arguments.folder.resolve())


if __name__ == "__main__":
    main()
