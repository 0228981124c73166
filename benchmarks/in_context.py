"""In-context scoring, ours against lm-evaluation-harness's `HFLM.loglikelihood`.

    python benchmarks/in_context.py                       # sentiment, 16 demonstrations
    python benchmarks/in_context.py --task banking77      # 77 labels of several tokens

Needs the `bench` extra. Both sides get the same prompts and label words and give log p(word |
prompt). The harness takes the same time for every text, so it may be timed on fewer of them
(`--peer-texts`); the ratio is of seconds per text, ours including tokenization and the prompt's
shared prefix, the harness's including tokenization.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from machine import describe
from peer_hflm import hflm_scores
from taskfit.data import Example, guess_columns, label_names, load_builtin, read_table, to_examples
from taskfit.methods.scoring import JOINT, LabelScorer
from taskfit.models.load import load_model
from taskfit.models.packaged import packaged_folder
from taskfit.settings import ModelSettings
from taskfit.tasks import PromptEncoder, Task, choose_demonstrations, load_task, task_from_columns


def load(task: str) -> tuple[Task, list[Example], list[Example]]:
    """Return a task with training and test examples."""
    if task == "banking77":
        folder = Path(os.environ["TASKFIT_DATA"]) / "banking77"
        sets = []
        for name in ("train.csv.gz", "test.csv"):
            table = read_table(str(folder / name))
            columns = guess_columns(table, text=["text"], label="category")
            sets.append(to_examples(table, columns, source=name))
        labels = label_names(sets[0])
        made = task_from_columns(name=task, text=["text"], label_column="category", labels=labels)
        return made, sets[0], sets[1]
    data = load_builtin(task, folder=None)
    return load_task(task), data.train, next(iter(data.evaluations.values()))


def main() -> None:
    """Time both sides, check that they agree, print and store JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="sentiment")
    parser.add_argument("--demonstrations", type=int, default=16)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--peer-texts", type=int, default=32)
    parser.add_argument("--peer-batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()

    task, train, test = load(arguments.task)
    shown = choose_demonstrations(
        train, how="balanced", num=arguments.demonstrations, labels=task.label_names, seed=0
    )
    order = np.random.default_rng(0).permutation(len(test))[: arguments.texts]
    texts = [Example(test[i].id, test[i].texts) for i in order]
    loaded = load_model(ModelSettings(dtype=arguments.dtype))
    loaded.tree.prepare_scoring()  # as runs that train nothing do
    encoder = PromptEncoder(loaded.tokenizer, task, shown, max_length=8192)
    LabelScorer(loaded.tree, encoder).log_probs(texts[:8])  # warm-up

    # Seconds for this side are taken twice around the peer's, so that a drift of the machine shows.
    def ours() -> float:
        started = time.perf_counter()
        LabelScorer(loaded.tree, encoder).log_probs(texts)
        return time.perf_counter() - started

    first = ours()
    few = texts[: arguments.peer_texts]
    requests = [(encoder.render(t.texts), c.word) for t in few for c in encoder.candidates]
    folder = str(packaged_folder("smollm2-135m"))
    scores, peer_seconds = hflm_scores(
        folder, requests, arguments.dtype, batch_size=arguments.peer_batch
    )
    second = ours()

    every = list(range(len(encoder.candidates)))
    import torch

    with torch.no_grad():
        joint = torch.cat(
            [JOINT.log_probs(loaded.tree, [item], [every]) for item in encoder.encode(few)]
        )
    difference = float(np.abs(joint.numpy() - np.array(scores)).max())
    per_text, peer_per_text = min(first, second) / len(texts), peer_seconds / len(few)
    result = {
        "machine": describe(),
        "task": arguments.task,
        "demonstrations": arguments.demonstrations,
        "labels": len(task.labels),
        "dtype": arguments.dtype,
        "prompt_tokens": len(encoder.encode(texts[:1])[0].prompt_ids),
        "our_texts": len(texts),
        "our_seconds": [round(first, 2), round(second, 2)],
        "peer_texts": len(few),
        "peer_seconds": round(peer_seconds, 2),
        "peer_batch": arguments.peer_batch,
        "ratio_per_text": round(peer_per_text / per_text, 1),
        "ratio_per_text_slower_of_ours": round(
            peer_per_text / (max(first, second) / len(texts)), 1
        ),
        "largest_difference": difference,
    }
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
