"""Preference tuning, ours against TRL's DPOTrainer, on pairs with long prompts: seconds a step.

    python benchmarks/dpo.py --peer-python ENV/bin/python --out results/benchmarks/dpo.json

As benchmarks/sft.py, with the pairs of TASKFIT_DATA/preference/dpo_en_demo.json.gz whose prompt has
at least --min-prompt tokens and is at least as long as the mean of its two answers. TRL runs twice:
scoring its reference at every step (its default), and before training (precompute_ref_log_probs),
which is what taskfit does. The seconds of scoring the reference are recorded, and
`with_reference_seconds` is a step with its share of them over one epoch.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

import sft
from taskfit.data.instructions import Preference, read_instructions
from taskfit.data.messages import Message
from taskfit.tasks.chat import ChatEncoder, EncodedPreference

CONTENDERS: dict[str, dict[str, object]] = {
    sft.OURS: {},
    "taskfit, compiled": {},
    "TRL": {},
    "TRL, reference before": {"precompute_ref_log_probs": True},
}


def long_prompts(
    num: int, *, min_prompt: int, max_length: int
) -> tuple[list[Preference], list[EncodedPreference]]:
    """Return a seeded draw of pairs with long prompts, whole in `max_length` tokens."""
    folder = Path(os.environ["TASKFIT_DATA"]) / "preference"
    rows = read_instructions(str(folder / "dpo_en_demo.json.gz")).rows
    encoder = ChatEncoder(sft.tokenizer_of_model(), max_length=100_000)
    chosen: list[Preference] = []
    encoded: list[EncodedPreference] = []
    for index in np.random.default_rng(0).permutation(len(rows)):
        row = rows[int(index)]
        assert isinstance(row, Preference)
        (pair,) = encoder.preferences([row])
        prompt = prompt_length(pair)
        answers = [answer.num_tokens - prompt for answer in (pair.chosen, pair.rejected)]
        fits = max(pair.chosen.num_tokens, pair.rejected.num_tokens) <= max_length
        if fits and prompt >= max(min_prompt, sum(answers) / 2):
            chosen.append(row)
            encoded.append(pair)
    if not chosen:
        raise SystemExit("No pair has such a prompt; lower --min-prompt or raise --max-length.")
    copies = -(-num // len(chosen))
    return (chosen * copies)[:num], (encoded * copies)[:num]


def prompt_length(pair: EncodedPreference) -> int:
    """Return the tokens of a pair's prompt."""
    return int(np.flatnonzero(pair.chosen.is_learned)[0])


def record_of(row: Preference) -> dict[str, Any]:
    """Return a pair as TRL reads it."""
    answers = {"chosen": row.chosen, "rejected": row.rejected}
    found = {k: sft.as_json([Message("assistant", text)]) for k, text in answers.items()}
    return {"prompt": sft.as_json(row.prompt), **found}


def run_contender(options: argparse.Namespace) -> None:
    """Be one contender's process."""
    gate = sft.Gate()
    num = options.batch * (options.warmup + options.steps)
    rows, _ = long_prompts(num, min_prompt=options.min_prompt, max_length=options.max_length)
    # A pair that stands twice needs two ids.
    named = [Preference(f"{i}", row.prompt, row.chosen, row.rejected) for i, row in enumerate(rows)]
    if options.contender.startswith(sft.OURS):
        sft.our_run(gate, named, options, "dpo")
        return
    records = [record_of(named[i]) for i in sft.training_order(num, 0)]
    names = ("DPOTrainer", "DPOConfig")
    sft.peer_run(
        gate, records, options, names=names, extra={"beta": 0.1, **CONTENDERS[options.contender]}
    )


def main() -> None:
    """Run what the arguments ask for; print and store JSON."""
    parser = sft.common_parser(str(__doc__).splitlines()[0], CONTENDERS)
    parser.set_defaults(max_length=768, batch=2, steps=9)
    parser.add_argument("--min-prompt", type=int, default=128, help="shortest prompt (tokens)")
    options = parser.parse_args()
    if options.contender:
        run_contender(options)
        return
    num = options.batch * (options.warmup + options.steps)
    _, pairs = long_prompts(num, min_prompt=options.min_prompt, max_length=options.max_length)
    pairs = [pairs[i] for i in sft.training_order(num, 0)]
    # Of both rows, as a padded batch has them, without padding.
    lengths = [pair.chosen.num_tokens + pair.rejected.num_tokens for pair in pairs]
    tokens = [int(n) for n in np.reshape(lengths, (-1, options.batch)).sum(axis=1)]
    found = sft.alternate(options.only, __file__, options)
    apart = sft.losses_apart(found, options)
    contenders = sft.summarize(found, tokens, options)
    for row in contenders.values():
        step, reference = row["median_step_seconds"], row["reference_seconds"]
        assert isinstance(step, float)
        assert isinstance(reference, float)
        share = reference / (options.warmup + options.steps)
        row["with_reference_seconds"] = round(step + share, 4)
    ours = contenders[sft.OURS]["with_reference_seconds"]
    for name, row in contenders.items():
        if name != sft.OURS:
            row["ours_to_this_with_reference"] = round(row["with_reference_seconds"] / ours, 2)  # type: ignore[operator]
    result: dict[str, object] = {
        "pairs": {
            "distinct": len({pair.id for pair in pairs}),
            "median_prompt_tokens": float(np.median([prompt_length(pair) for pair in pairs])),
            "median_answer_tokens": float(
                np.median(
                    [
                        answer.num_tokens - prompt_length(pair)
                        for pair in pairs
                        for answer in (pair.chosen, pair.rejected)
                    ]
                )
            ),
        },
        "losses_apart": apart,
        "contenders": contenders,
    }
    sft.write(result, options)
    sft.check_losses(apart, options)


if __name__ == "__main__":
    main()
