"""Supervised tuning, ours against TRL's SFTTrainer: tokens per second on the same rows.

    python benchmarks/sft.py --peer-python ENV/bin/python --out results/benchmarks/sft.json

Needs TASKFIT_DATA with instructions, and an environment with TRL (--peer-python; taskfit's
sources are found there by PYTHONPATH). The packaged 135M model in bfloat16, LoRA r=8 on all linear
layers, completion-only loss, no gradient checkpointing on either side. Each contender trains by its
own loop in a process of its own; the processes take their steps in turn. A token is one of a row,
never padding, so contenders are compared by the same count. TRL's packing fills bins with other
rows than the batch's; there the count is that of the bins.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskfit.data.instructions import Conversation, InstructionRow, read_instructions
from taskfit.data.messages import Message
from taskfit.models.packaged import locate_model, packaged_folder
from taskfit.tasks.chat import ChatEncoder, find_template

RATE = 2e-4
MARK = "@@"
TOLERANCE = {"bfloat16": 0.05, "float32": 0.001}  # of losses (nats)
BIN = 1024  # tokens of a bin of TRL's packing
OURS = "taskfit"
CONTENDERS = {
    OURS: {},
    "taskfit, compiled": {},
    "TRL, padded": {"padding_free": False},
    "TRL, padding-free": {"padding_free": True},
    "TRL, packing": {"packing": True, "max_length": BIN},
}
# The same bfloat16 weights by autocast (TRL's default) or as they are, whichever is faster for it.
PEER_PRECISION = {"autocast": True, "pure": False}


class Gate:
    """Lets a contender take one step at a time, when the parent process says so."""

    def __init__(self) -> None:
        """Keep the parent's pipe, and let everything else that prints go to the error output."""
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> None:
        """Wait for the parent; end the process if it has closed the pipe."""
        if not sys.stdin.readline():
            self._out.close()
            os._exit(0)

    def tell(self, **values: object) -> None:
        """Tell the parent something."""
        self._out.write(MARK + json.dumps(values) + "\n")
        self._out.flush()


def tokenizer_of_model(folder: str | Path | None = None) -> Any:  # noqa: ANN401 - transformers'
    """Return a model's tokenizer with the template of both sides; None: of the packaged model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder or packaged_folder("smollm2-135m"))
    tokenizer.chat_template = find_template("chatml")
    return tokenizer


def training_order(num: int, seed: int) -> list[int]:
    """Return the order in which our loop takes rows in its first epoch."""
    return [int(i) for i in np.random.default_rng([seed, 0]).permutation(num)]


def instruction_rows(num: int, *, max_length: int) -> list[InstructionRow]:
    """Return a seeded draw of instructions whose text is at most so long (tokens)."""
    folder = Path(os.environ["TASKFIT_DATA"]) / "instructions"
    rows = read_instructions(str(folder / "alpaca_cleaned_first5k.json.gz")).rows
    encoder = ChatEncoder(tokenizer_of_model(), max_length=100_000)
    chosen: list[InstructionRow] = []
    for index in np.random.default_rng(0).permutation(len(rows)):
        row = rows[int(index)]
        assert isinstance(row, Conversation)
        if encoder.conversations([row])[0].num_tokens <= max_length:
            chosen.append(row)
        if len(chosen) == num:
            return chosen
    raise SystemExit(f"Only {len(chosen)} rows of at most {max_length} tokens; {num} are needed.")


def our_run(
    gate: Gate, rows: Sequence[InstructionRow], options: argparse.Namespace, method: str
) -> None:
    """Train by our own loop, one step whenever the gate opens."""
    import torch

    from taskfit.methods.adapted import AdaptedModel
    from taskfit.methods.dpo import DpoLoss
    from taskfit.methods.sft import SftLoss
    from taskfit.models.load import load_model
    from taskfit.runs.tuning.measure import pair_log_probs
    from taskfit.runs.tuning.model import TunedModel
    from taskfit.screen import SilentScreen
    from taskfit.settings_file import settings_from_dict

    training = {"learning_rate": RATE, "batch_size": options.batch, "epochs": 1, "keep": "last"}
    training |= {"warmup_fraction": 0.0, "save_every_steps": 10**6, "tensorboard": False}
    if options.budget:
        training["token_budget"] = options.budget
    settings = settings_from_dict(
        {
            "method": {"name": method},
            "model": {"name": options.model, "dtype": options.dtype, "device": options.device},
            "tuning": {"chat_template": "chatml"},
            "training": training,
            "adapter": {"lora_dropout": options.dropout},
        }
    )
    tuned = TunedModel(settings, load_model(settings.model))
    items, _ = tuned.encode(rows)
    started = time.perf_counter()
    reference: Mapping[str, tuple[float, float]] = {}
    if method == "dpo":
        reference = pair_log_probs(tuned, items, label="", screen=SilentScreen())  # type: ignore[arg-type]
    reference_seconds = time.perf_counter() - started
    adapted = AdaptedModel(tuned.model, settings)
    adapted.make_trainable()
    start_adapters(adapted.module)
    if options.contender == "taskfit, compiled":
        adapted.compile()
    tree = tuned.model.tree
    loss = DpoLoss(tree, beta=0.1, reference=reference) if method == "dpo" else SftLoss(tree)
    seconds = [0.0]

    def show(record: Mapping[str, Any]) -> None:
        if record["kind"] == "start":
            gate.tell(ready=True, reference_seconds=reference_seconds)
            gate.wait()
        elif record["kind"] == "step":
            step, seconds[0] = record["seconds"] - seconds[0], record["seconds"]
            memory = peak(options.device)
            gate.tell(seconds=step, loss=record["loss"], run=record["tokens"], memory=memory)
            gate.wait()

    torch.manual_seed(0)
    train_items(adapted, loss, items, settings, show=show)


def train_items(
    adapted: Any,  # noqa: ANN401 - what needs torch is imported late
    loss: Any,  # noqa: ANN401
    items: Sequence[Any],
    settings: Any,  # noqa: ANN401
    *,
    show: Callable[[Mapping[str, Any]], None],
) -> None:
    """Train by the loop of `taskfit fit`, without validation, and keep nothing.

    Args:
        adapted: The `AdaptedModel`, its weights trainable.
        loss: The method's objective.
        items: Encoded examples.
        settings: All settings.
        show: Called with every record of the training log.
    """
    from taskfit.models.adapters import trainable_parameters
    from taskfit.training.checkpoint import Checkpoints
    from taskfit.training.log import TrainingLog
    from taskfit.training.loop import TrainingJob, train
    from taskfit.training.memory import MemoryAccount

    with tempfile.TemporaryDirectory() as scratch:
        train(
            TrainingJob(
                model=adapted.module,
                parameters=trainable_parameters(adapted.module),
                objective=loss,
                items=items,
                validate=None,
                settings=settings.training,
                seed=settings.seed,
                checkpoints=Checkpoints(Path(scratch) / "checkpoints"),
                log=TrainingLog(Path(scratch), show=show),
                memory=MemoryAccount(adapted.tree.device),
                count_tokens=adapted.tokens_run,
            )
        )


def peer_run(
    gate: Gate,
    records: list[dict[str, Any]],
    options: argparse.Namespace,
    *,
    names: tuple[str, str],
    extra: Mapping[str, object],
) -> None:
    """Train by TRL's own loop, one step whenever the gate opens.

    Args:
        gate: The gate.
        records: Rows in the order of our steps.
        options: Of the command line.
        names: Trainer and configuration, as TRL calls them.
        extra: Settings of the variant.
    """
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback

    folder = locate_model(options.model)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype))
    on_cpu = options.device == "cpu"
    peft = LoraConfig(r=8, lora_alpha=16, lora_dropout=options.dropout, target_modules="all-linear")
    losses: list[float] = []
    reference_seconds = [0.0]

    class Told(getattr(trl, names[0])):  # type: ignore[misc]
        def training_step(self, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401
            loss = super().training_step(*arguments, **more)
            losses.append(float(loss))
            return loss

        def _precompute_ref_logps(self, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401
            started = time.perf_counter()
            found = super()._precompute_ref_logps(*arguments, **more)
            reference_seconds[0] += time.perf_counter() - started
            return found

    class Gated(TrainerCallback):  # type: ignore[misc]
        started = 0.0

        def on_step_begin(self, *_: object, **__: object) -> None:
            if not losses:
                gate.tell(ready=True, reference_seconds=reference_seconds[0])
                gate.wait()
            self.started = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            if not on_cpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - self.started
            gate.tell(seconds=seconds, loss=losses[-1], run=0, memory=peak(options.device))
            gate.wait()

    with tempfile.TemporaryDirectory() as scratch:
        arguments = {
            "output_dir": scratch,
            "use_cpu": on_cpu,
            "bf16": PEER_PRECISION[options.peer_precision] and options.dtype == "bfloat16",
            "gradient_checkpointing": False,
            "per_device_train_batch_size": options.batch,
            "learning_rate": RATE,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "num_train_epochs": 1,
            "train_sampling_strategy": "sequential",
            "max_length": None,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            **extra,
        }
        trainer = Told(
            model=model,
            args=getattr(trl, names[1])(**arguments),
            train_dataset=Dataset.from_list(records),
            processing_class=tokenizer_of_model(folder),
            peft_config=peft,
            callbacks=[Gated()],
        )
        start_adapters(trainer.model)
        trainer.train()


def start_adapters(model: Any) -> None:  # noqa: ANN401 - a module of either side
    """Give the adapters of both sides the same start, so that their losses can be compared."""
    import torch

    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            place = name[name.index("layers.") : name.index(".lora_A")]
            generator = torch.Generator().manual_seed(zlib.crc32(place.encode()))
            with torch.no_grad():
                # The width of PEFT's own start, which is uniform.
                drawn = torch.rand(parameter.shape, generator=generator) * 2 - 1
                parameter.copy_(drawn / math.sqrt(parameter.shape[1]))


def peak(device: str) -> int:
    """Return the most memory that this process had, on a GPU in tensors there (bytes)."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return messages as TRL reads them."""
    return [{"role": m.role, "content": m.content} for m in messages]


def record_of(row: Conversation) -> dict[str, Any]:
    """Return a row as TRL reads it."""
    return {"prompt": as_json(row.prompt), "completion": as_json(row.messages[-1:])}


class Contender:
    """A process that takes steps when asked."""

    def __init__(self, name: str, script: str, options: argparse.Namespace) -> None:
        """Start it and wait until it could take its first step."""
        python = options.peer_python if name.startswith("TRL") else sys.executable
        own = (Path(__file__).parent, Path(__file__).parents[1] / "src")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, own))}
        environment |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        command = [python, script, "--contender", name]
        passed = (
            "steps",
            "warmup",
            "batch",
            "max_length",
            "min_prompt",
            "dropout",
            "budget",
            "peer_precision",
            "dtype",
            "device",
            "model",
        )
        for option, value in vars(options).items():
            if option in passed:
                command += [f"--{option.replace('_', '-')}", str(value)]
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.ready = self._answer()

    def step(self) -> dict[str, Any]:
        """Take one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return found
        self._log.seek(0)
        raise SystemExit(f"{self.name} failed:\n{self._log.read()[-3000:]}")


def alternate(
    names: Sequence[str], script: str, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Start all contenders and let them take steps in turn; return what each did."""
    contenders = [Contender(name, script, options) for name in names]
    found: dict[str, dict[str, Any]] = {c.name: {"ready": c.ready, "steps": []} for c in contenders}
    for step in range(options.warmup + options.steps):
        # Another one goes first each time.
        for place in range(len(contenders)):
            contender = contenders[(place + step) % len(contenders)]
            found[contender.name]["steps"].append(contender.step())
        shown = {c.name: round(found[c.name]["steps"][-1]["seconds"], 2) for c in contenders}
        print(f"step {step + 1}: {shown}", file=sys.stderr, flush=True)
    for contender in contenders:
        contender.close()
    return found


def summarize(
    found: Mapping[str, dict[str, Any]], tokens: Sequence[int], options: argparse.Namespace
) -> dict[str, dict[str, object]]:
    """Return seconds, tokens a second and losses of each contender, and our ratio to it.

    Args:
        found: What `alternate` gave.
        tokens: Tokens of the rows of each step.
        options: Of the command line.
    """
    timed = slice(options.warmup, options.warmup + options.steps)
    rows: dict[str, dict[str, object]] = {}
    for name, what in found.items():
        seconds = [step["seconds"] for step in what["steps"]][timed]
        counted = [BIN * options.bins] * options.steps if "packing" in name else tokens[timed]
        rates = [count / time for count, time in zip(counted, seconds, strict=True)]
        rows[name] = {
            "median_step_seconds": round(statistics.median(seconds), 4),
            "tokens_per_second": round(sum(counted) / sum(seconds), 1),
            "median_tokens_per_second": round(statistics.median(rates), 1),
            "tokens_of_rows": int(sum(counted)),
            "tokens_run": sum(step["run"] for step in what["steps"][timed]) or None,
            "losses": [round(step["loss"], 4) for step in what["steps"]],
            "peak_memory_mb": round(what["steps"][-1]["memory"] / 1e6),
            "reference_seconds": round(what["ready"]["reference_seconds"], 2),
        }
    ours = rows[OURS]["median_tokens_per_second"]
    for name, row in rows.items():
        if name != OURS:
            row["ours_to_this"] = round(ours / row["median_tokens_per_second"], 2)  # type: ignore[operator]
    return rows


def losses_apart(
    found: Mapping[str, dict[str, Any]], options: argparse.Namespace
) -> dict[str, float]:
    """Return how far the losses of contenders on the same rows are apart, first step and most.

    With dropout, every contender draws its own.
    """
    losses = [
        [step["loss"] for step in what["steps"]]
        for name, what in found.items()
        if "packing" not in name
    ]
    apart = np.ptp(np.array(losses), axis=0)
    return {
        "first_step": round(float(apart[0]), 5),
        "largest": round(float(apart.max()), 5),
        "tolerance": TOLERANCE[options.dtype],
    }


def check_losses(apart: Mapping[str, float], options: argparse.Namespace) -> None:
    """Fail if contenders do not train alike; the result is stored by then.

    Raises:
        SystemExit: If they do not.
    """
    if options.dropout == 0 and apart["largest"] > apart["tolerance"]:
        raise SystemExit(f"The losses of contenders are {apart['largest']} apart.")


def common_parser(description: str, contenders: Mapping[str, object]) -> argparse.ArgumentParser:
    """Return the options that both benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=16, help="timed steps of each contender")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--batch", type=int, default=8, help="rows or pairs of a step")
    parser.add_argument("--max-length", type=int, default=512, help="longest row (tokens)")
    parser.add_argument("--budget", type=int, default=0, help="our token budget; 0: the default")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the adapters")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer-precision", choices=list(PEER_PRECISION), default="autocast")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", default="smollm2-135m", help="name, or a folder")
    parser.add_argument("--peer-python", default=sys.executable)
    # Compiling takes minutes, and each contender holds a model in memory all along.
    usual = [name for name in contenders if "compiled" not in name]
    parser.add_argument("--only", nargs="*", choices=list(contenders), default=usual)
    parser.add_argument("--contender", choices=list(contenders), help="(one process of it)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def write(result: dict[str, object], options: argparse.Namespace) -> None:
    """Print and store a result with the machine it was measured on."""
    from machine import describe

    settings = {k: v for k, v in vars(options).items() if k not in ("out", "contender", "only")}
    code = "import trl, transformers; print(trl.__version__, transformers.__version__)"
    peer = subprocess.run([options.peer_python, "-c", code], capture_output=True, text=True)
    versions = peer.stdout.strip().splitlines()[-1:] or ["absent"]
    settings |= {"peer_python": Path(options.peer_python).name}
    record = {
        "settings": settings,
        "trl_and_transformers_of_peer": versions[0],
        **result,
        "load_average": os.getloadavg()[0],
        "machine": describe(),
    }
    print(json.dumps(record, indent=2))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def run_contender(options: argparse.Namespace) -> None:
    """Be one contender's process."""
    gate = Gate()
    num = options.batch * (options.warmup + options.steps)
    rows = instruction_rows(num, max_length=options.max_length)
    if options.contender.startswith(OURS):
        our_run(gate, rows, options, "sft")
        return
    ordered = [rows[i] for i in training_order(num, 0)]
    records = [record_of(row) for row in ordered if isinstance(row, Conversation)]
    extra = dict(CONTENDERS[options.contender])
    if extra.get("packing"):
        # As many tokens a step as the batch has, in whole bins, and the rows so often that they
        # fill the bins of all steps.
        extra["per_device_train_batch_size"] = options.bins
        needed = 1.2 * BIN * options.bins * (options.warmup + options.steps)
        records = records * math.ceil(needed / options.num_tokens)
    names = ("SFTTrainer", "SFTConfig")
    peer_run(gate, records, options, names=names, extra=extra)


def main(script: str, run: Callable[[argparse.Namespace], None]) -> None:
    """Run what the arguments ask for; print and store JSON."""
    parser = common_parser(str(__doc__).splitlines()[0], CONTENDERS)
    options = parser.parse_args()
    num = options.batch * (options.warmup + options.steps)
    rows = instruction_rows(num, max_length=options.max_length)
    items = ChatEncoder(tokenizer_of_model(), max_length=100_000).conversations(
        [row for row in rows if isinstance(row, Conversation)]
    )
    lengths = [items[i].num_tokens for i in training_order(num, 0)]
    batches = np.reshape(lengths, (-1, options.batch))
    options.bins = max(1, round(float(batches.sum(axis=1).mean()) / BIN))
    options.num_tokens = int(batches.sum())
    if options.contender:
        run(options)
        return
    found = alternate(options.only, script, options)
    apart = losses_apart(found, options)
    tokens = [int(n) for n in batches.sum(axis=1)]
    result: dict[str, object] = {
        "rows": {
            "median_tokens": float(np.median(lengths)),
            "padded_to_real": round(
                float(batches.max(axis=1).sum() * options.batch / batches.sum()), 2
            ),
        },
        "losses_apart": apart,
        "contenders": summarize(found, tokens, options),
    }
    write(result, options)
    check_losses(apart, options)


if __name__ == "__main__":
    main(__file__, run_contender)
