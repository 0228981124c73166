"""Servers that people write themselves, for `serve.py`: FastAPI and LitServe around transformers.

    python benchmarks/serve_peer.py fastapi --folder FOLDER --port 8001

Both answer `POST /predict {"text": ...}` with the probabilities of the labels, read from the label
words after the run's own prompt, by a plain merged model in the format that it is stored in. The
folder is what `serve_prepare.py` wrote.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_BATCH = 32
# Seconds that LitServe waits for a batch to fill; it takes what is there.
BATCH_TIMEOUT = 0.005


class LabelWords:
    """Label words after a prompt, in padded batches."""

    def __init__(self, folder: Path) -> None:
        """Load the merged model and the prompt."""
        prepared = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
        self._before, self._after = prepared["prompt"]
        self._tokenizer = AutoTokenizer.from_pretrained(folder / "merged", padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._model = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype="auto").eval()
        ids = [self._tokenizer(word)["input_ids"] for word in prepared["words"]]
        self._words = torch.tensor([i for (i,) in ids])

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the probabilities of the labels for each text."""
        prompts = [f"{self._before}{text}{self._after}" for text in texts]
        batch = self._tokenizer(prompts, return_tensors="pt", padding=True)
        logits = self._model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]  # (N, V)
        found: list[list[float]] = logits[:, self._words].float().softmax(-1).tolist()
        return found


class Body(BaseModel):
    """A text to label."""

    text: str


def serve_fastapi(folder: Path, port: int) -> None:
    """One text after the other, as they come."""
    model = LabelWords(folder)
    app = FastAPI()

    @app.get("/health")
    async def health() -> str:
        return "ok"

    # Not in threads: on two cores forty of them would only get in each other's way.
    @app.post("/predict")
    async def predict(body: Body) -> dict[str, Any]:
        return {"probabilities": model([body.text])[0]}

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


class LitLabelWords(litserve.LitAPI):
    """Texts that wait together are one padded batch."""

    folder: Path

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.model = LabelWords(self.folder)

    def decode_request(self, request: Body) -> str:
        """Return the text."""
        return request.text

    def batch(self, inputs: list[str]) -> list[str]:
        """Leave texts as they are: the tokenizer pads them."""
        return inputs

    def predict(self, texts: list[str]) -> list[list[float]]:
        """Score a batch."""
        return self.model(texts)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        """Return the rows."""
        return output

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        """Return a row as JSON."""
        return {"probabilities": output}


def serve_litserve(folder: Path, port: int) -> None:
    """Dynamic batches, padded."""
    api = LitLabelWords(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT)
    api.folder = folder
    server = litserve.LitServer(api, accelerator="cpu", timeout=120)
    server.run(port=port, host="127.0.0.1", log_level="warning", generate_client_file=False)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("server", choices=["fastapi", "litserve"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    serve = {"fastapi": serve_fastapi, "litserve": serve_litserve}[arguments.server]
    serve(arguments.folder, arguments.port)


if __name__ == "__main__":
    main()
