"""20,000 mixed requests to a live server, good and bad: none wrong, none lost, flat memory.

    python benchmarks/serve_soak.py --out results/benchmarks/serve_soak.json

Two runs that label and one that writes are fitted on a tiny random model and served by one
`taskfit serve` with a key, a short queue and a small limit of bodies. Many clients at once send
what `serve_faults.py` makes: texts and states whose answers are compared with the runs' own, texts
to write, hang-ups before the answer and in the middle of a body, bodies in small parts, malformed
and oversized ones, wrong keys and unknown models. The server's resident memory is recorded on the
way. Exits with 1 if an answer was wrong or a request got none.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe
from serve_client import ask_once, render
from serve_faults import Cases, Expected, soak
from serve_targets import free_port, resident, started
from taskfit.files import write_json_atomic

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

KEY = "soak"
MAX_BODY = 20_000
RUNS = ("words", "head", "writer")
PROMPTS = ("The dog was", "The child was in the", "A river")


def direct(run: Path, texts: list[str]) -> dict[str, dict[str, float]]:
    """Return what a run says of texts when it is asked directly: text -> label -> probability."""
    from taskfit.data import Example
    from taskfit.runs.load import load_classifier

    classifier = load_classifier(run, device="cpu")
    examples = [Example(str(i), {"text": text}) for i, text in enumerate(texts)]
    labels, rows = classifier.task.label_names, classifier.probabilities(examples).tolist()
    return {
        text: dict(zip(labels, row, strict=True)) for text, row in zip(texts, rows, strict=True)
    }


def expected_of(runs: dict[str, Path], port: int, headers: dict[str, str]) -> Expected:
    """Return what is to be answered; of texts that are written, what the idle server writes."""
    import tiny

    texts = [example.texts["text"] for example in tiny.toy_examples(200, offset=30)]
    written = {}
    for prompt in PROMPTS:
        body = {"model": "writer", "prompt": prompt, "max_tokens": 6, "temperature": 0}
        data = render("/v1/completions", json.dumps(body).encode(), headers=headers)
        written[prompt] = ask_once(port, data).json()["choices"][0]["text"]
    labelling = {name: direct(runs[name], texts) for name in RUNS[:2]}
    return Expected(labelling, written, max_body=MAX_BODY, headers=headers)


def make_runs(folder: Path) -> dict[str, Path]:
    """Fit tiny runs over a random base."""
    import tiny
    from tiny_runs import fit_runs

    tokenizer = tiny.byte_level_tokenizer()
    tiny.tiny_model("llama", len(tokenizer)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return fit_runs(folder, folder / "base")


def main() -> None:
    """Fit, serve, ask, and write what came of it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--max-queue", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = make_runs(Path(scratch))
        port, headers = free_port(), {"authorization": f"Bearer {KEY}"}
        words = [sys.executable, "-m", "taskfit", "serve", *(f"{n}={runs[n]}" for n in RUNS)]
        words += ["--port", str(port), "--max-queue", str(arguments.max_queue), "--log", "warning"]
        words += ["--max-body", str(MAX_BODY)]
        os.environ["TASKFIT_API_KEY"] = KEY
        log = Path(scratch) / "server.log"
        with started(words, port=port, ready="/readyz", log=log, threads=1) as process:
            expected = expected_of(runs, port, headers)
            memory: list[dict[str, Any]] = []
            every = max(1, arguments.requests // 40)

            def watch(number: int) -> None:
                if number % every == 0:
                    memory.append({"requests": number, "resident_bytes": resident(process)})

            begun = time.perf_counter()
            outcome = asyncio.run(
                soak(
                    port,
                    Cases(expected, seed=arguments.seed),
                    count=arguments.requests,
                    clients=arguments.clients,
                    watch=watch,
                )
            )
            seconds = time.perf_counter() - begun
            watch(0)
            alive = ask_once(port, render("/health", b"", method="GET")).status
    found = outcome.as_json()
    settled = memory[len(memory) // 4]["resident_bytes"]
    record = {
        "machine": describe(),
        "requests": arguments.requests,
        "clients": arguments.clients,
        "max_queue": arguments.max_queue,
        "seconds": seconds,
        "alive_afterwards": alive == 200,
        **found,
        "resident_growth_after_a_quarter": memory[-1]["resident_bytes"] / settled - 1,
        "resident": memory,
    }
    print(json.dumps({k: v for k, v in record.items() if k != "resident"}, indent=2))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(arguments.out, record)
    if found["wrong"] or found["lost"] or alive != 200:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
