"""Contenders of `peers.py`: DecisionFormer, SetFit, and scikit-learn's TF-IDF."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from peer_data import Clock, Outcome, PeerData, PeerOptions, PeerSet


def run_decisionformer(
    data: PeerData,
    options: PeerOptions,
    clock: Clock,
    *,
    learning_rate: float | None = None,
    shuffle_options: bool = True,
) -> Outcome:
    """Train DecisionFormer's code readout with LoRA; its trainer evaluates at the end.

    Its documentation trains in float32 on a CPU; here the weights are in bfloat16
    (`finetune.model_dtype`), which is several times faster where the processor computes in it.
    """
    folder = Path(options.scratch)
    key = "label"

    def write(name: str, found: PeerSet) -> str:
        question = {
            "type": "choice",
            "instructions": data.question,
            "criteria": {word.strip(): None for word in data.words},
        }
        rows = [
            {
                "id": f"{name}-{place}",
                "state": text,
                "questions": {key: question},
                "gold": {key: data.words[gold].strip()},
            }
            for place, (text, gold) in enumerate(zip(found.texts, found.gold, strict=True))
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    config: dict[str, Any] = {
        "model": {
            "backbone": options.model,
            "attention": "causal",
            "head": {"type": "code_readout"},
        },
        "finetune": {
            "mode": "lora",
            "model_dtype": "bfloat16",
            "export": "adapter",
            "lora": {
                "r": options.lora_rank,
                "lora_alpha": options.lora_alpha,
                "lora_dropout": options.lora_dropout,
                "target_modules": "all-linear",
            },
        },
        "data": {
            "train": write("train", data.train),
            "eval": {name: write(f"test_{name}", test) for name, test in data.tests.items()},
            "max_length": 2048,
            "shuffle_options": shuffle_options,
        },
        "train": {
            "output_dir": str(folder / "run"),
            "epochs": options.epochs,
            "max_steps": options.max_steps,
            "global_batch_size": options.batch_size,
            "micro_batch_size": min(8, options.batch_size),
            "lr": learning_rate or options.learning_rate,
            "seed": options.seed,
            "eval_every": None,
            "save_every": None,
        },
        "eval": {"micro_batch_size": 32},
    }
    with clock.measure("load"):
        from decisionformer.config import load_config
        from decisionformer.trainer import Trainer

        trainer = Trainer(load_config(config))
        evaluate, finish = trainer.evaluate, trainer._finish

    def timed_evaluate() -> object:
        with evaluation.measure("evaluation"):
            return evaluate()

    def timed_finish() -> object:
        # Exporting checkpoints is no part of the comparison.
        with evaluation.measure("export"):
            return finish()

    evaluation = Clock()
    trainer.evaluate, trainer._finish = timed_evaluate, timed_finish
    with clock.measure("training"):
        trainer.train()
    for times, taken in ((clock.wall, evaluation.wall), (clock.processor, evaluation.processor)):
        times["evaluation"] = taken["evaluation"]
        times["training"] -= taken["evaluation"] + taken["export"]
    probabilities = {}
    for name, test in data.tests.items():
        path = folder / "run" / "predictions" / f"{name}-step{trainer.step:06d}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = {row["request_id"]: row["probabilities"] for row in rows}
        probabilities[name] = np.array([found[f"test_{name}-{i}"] for i in range(len(test))])
    trained = {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}
    settings = {**config, "data": {"max_length": 2048, "shuffle_options": shuffle_options}}
    settings["train"] = {k: v for k, v in config["train"].items() if k != "output_dir"}
    settings["model"] = {k: v for k, v in config["model"].items() if k != "backbone"}
    return Outcome(probabilities, {"weights": "bfloat16", "trained": sorted(trained), **settings})


def run_setfit(data: PeerData, options: PeerOptions, clock: Clock) -> Outcome:
    """Train SetFit on the packaged MiniLM: contrastive pairs, then a logistic regression.

    The number of pairs follows the paper (Tunstall et al. 2022, section 3.1): 20 positive and 20
    negative ones a text, one epoch. The package's own default, all pairs, grows with the square of
    the labels. Learning rate and batch size are the package's defaults.
    """
    pairs = 20
    with clock.measure("load"):
        from datasets import Dataset
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Normalize, Pooling, Transformer
        from setfit import SetFitModel, Trainer, TrainingArguments
        from sklearn.linear_model import LogisticRegression

        body = Transformer(options.encoder, max_seq_length=256)
        pooling = Pooling(body.get_embedding_dimension(), "mean")
        encoder = SentenceTransformer(modules=[body, pooling, Normalize()], device="cpu")
        model = SetFitModel(model_body=encoder, model_head=LogisticRegression())
    with clock.measure("training"):
        arguments = TrainingArguments(
            output_dir=options.scratch,
            num_iterations=pairs,
            num_epochs=1,
            max_steps=options.max_steps or -1,
            seed=options.seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            show_progress_bar=False,
        )
        rows = Dataset.from_dict({"text": data.train.texts, "label": data.train.gold})
        Trainer(model=model, args=arguments, train_dataset=rows).train()
    probabilities = {}
    for name, test in data.tests.items():
        with clock.measure("evaluation"):
            found = np.zeros((len(test), len(data.labels)))
            classes = [int(c) for c in model.model_head.classes_]
            found[:, classes] = np.asarray(
                model.predict_proba(test.texts, as_numpy=True, show_progress_bar=False)
            )
            probabilities[name] = found
    return Outcome(
        probabilities,
        {
            "model": "all-MiniLM-L6-v2",
            "weights": "float32",
            "num_iterations": pairs,
            "num_epochs": 1,
            "batch_size": arguments.embedding_batch_size,
            "learning_rate": arguments.body_embedding_learning_rate,
            "steps": math.ceil(2 * pairs * len(data.train) / arguments.embedding_batch_size),
            "head": "LogisticRegression()",
        },
    )


def run_tfidf(data: PeerData, options: PeerOptions, clock: Clock) -> Outcome:
    """Fit scikit-learn's TF-IDF with logistic regression, both with their defaults."""
    with clock.measure("load"):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    with clock.measure("training"):
        model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
        model.fit(data.train.texts, data.train.gold)
    probabilities = {}
    for name, test in data.tests.items():
        with clock.measure("evaluation"):
            found = np.zeros((len(test), len(data.labels)))
            found[:, model.classes_] = model.predict_proba(test.texts)
            probabilities[name] = found
    return Outcome(probabilities, {"model": "TfidfVectorizer(), LogisticRegression(max_iter=1000)"})
