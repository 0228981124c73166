"""One contender of `peers.py` in a process of its own: reads files, writes files.

Needs taskfit only for our own rows, so that a peer can run in an environment of its own.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np

from peer_data import Clock, Outcome, PeerData, PeerOptions, read_data
from peer_others import run_decisionformer, run_setfit, run_tfidf
from peer_ours import OURS, run_ours
from peer_transformers import run_classifier, run_sft

Runner = Callable[[PeerData, PeerOptions, Clock], Outcome]
# The package's own rate for LoRA, and options in one order: the codes are then words.
GENTLER = functools.partial(run_decisionformer, learning_rate=2e-4, shuffle_options=False)
PEERS: dict[str, Runner] = {
    "Trainer classifier": run_classifier,
    "Trainer classifier, half the epochs": run_classifier,
    "Trainer classifier, prompt": functools.partial(run_classifier, prompt=True),
    "TRL SFTTrainer": run_sft,
    "DecisionFormer": run_decisionformer,
    "DecisionFormer, gentler": GENTLER,
    "DecisionFormer, gentler, 20 steps": GENTLER,
    "SetFit MiniLM": run_setfit,
    "TF-IDF + LR": run_tfidf,
}
CONTENDERS: dict[str, Runner] = {
    **PEERS,
    **{name: functools.partial(run_ours, method=method) for name, method in OURS.items()},
}
HALVED, SHORT = ", half the epochs", ", 20 steps"
PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "scikit-learn"),
    *("trl", "setfit", "sentence-transformers", "decisionformer", "taskfit"),
    *("fastapi", "uvicorn", "litserve", "tokenizers", "typesafe-sdk", "jevbench", "ray"),
)


def versions() -> dict[str, str]:
    """Return the versions of the packages that are installed here."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Run the contender; leave probabilities and a description in the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contender", choices=list(CONTENDERS), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--options", required=True, help="PeerOptions as JSON")
    arguments = parser.parse_args()
    data = read_data(arguments.data)
    options = PeerOptions(**json.loads(arguments.options))
    if arguments.contender.endswith(HALVED):
        options = replace(options, epochs=max(1, options.epochs // 2))
    elif arguments.contender.endswith(SHORT):
        options = replace(options, max_steps=20)
    clock = Clock()
    outcome = CONTENDERS[arguments.contender](data, options, clock)
    found = {name: np.asarray(p, np.float64) for name, p in outcome.probabilities.items()}
    np.savez(arguments.out / "probabilities.npz", **found)
    described = {
        "contender": arguments.contender,
        "digest": data.digest(),
        "seconds": clock.wall,
        "cpu_seconds": clock.processor,
        "settings": outcome.settings,
        "versions": versions(),
    }
    if "torch" in sys.modules:
        import torch

        described["threads"] = torch.get_num_threads()
    (arguments.out / "contender.json").write_text(json.dumps(described), encoding="utf-8")


if __name__ == "__main__":
    main()
