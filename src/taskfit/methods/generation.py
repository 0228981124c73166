"""Generation of text in batches padded on the left, by transformers' own decoding."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.compiler import set_stance
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TextStreamer,
)

from taskfit.models.load import LoadedModel
from taskfit.models.out_of_memory import is_out_of_memory
from taskfit.models.whole import require_finite
from taskfit.tree import IntArray

GENERATION_TOKENS = 4096  # padded prompt tokens in one batch
# Tokens of a prompt by which padding on the left is tried, and those that pad it.
TRIED_TOKENS, TRIED_PADDING = 8, 5


def generation_config(
    model: LoadedModel,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_ids: Sequence[int] = (),
    stop: Sequence[str] = (),
) -> GenerationConfig:
    """Return transformers' settings of decoding.

    Args:
        model: Whose end and padding tokens count.
        max_new_tokens: Longest answer (tokens).
        temperature: Divides the scores before sampling; 0: the likeliest token each time.
        top_p: Sampling keeps the likeliest tokens that have this probability together.
        stop_ids: Further tokens that end an answer, such as that of the end of a turn.
        stop: Texts that end an answer; they are still part of it.
    """
    tokenizer = model.tokenizer
    ends = [i for i in (tokenizer.eos_token_id, *stop_ids) if i is not None]
    sampled = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(set(ends)) or None,
        stop_strings=[mark for mark in stop if mark] or None,
        use_cache=True,
        **sampled,
    )


@torch.no_grad()
def generate_texts(
    model: LoadedModel,
    prompts: Sequence[IntArray],
    config: GenerationConfig,
    *,
    advance: Callable[[int], None] | None = None,
    write: Callable[[str], None] | None = None,
) -> list[str]:
    """Return what the model writes after each prompt, special tokens left out.

    Longest prompts run first, in batches of like length padded on the left; where a model's
    recurrent layers read padding, in batches of one length. Where memory runs out, the batch is
    halved.

    Args:
        model: The model.
        prompts: Token ids, each (T,).
        config: See `generation_config`.
        advance: Called with the number of prompts just finished.
        write: With a single prompt: called with each piece of its answer as it is written.

    Raises:
        NotFiniteError: If the model's scores are not finite.
        RuntimeError: If memory does not suffice for a single prompt.
    """
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    limit = len(prompts)
    model.tree.model.eval()
    pad = model.tokenizer.pad_token_id or 0
    with model.tree.plain_attention() as plain, set_stance("force_eager"):
        pads = len(set(map(len, prompts))) < 2 or model.tree.shares_prefixes or _pads(plain, pad)
        while order:
            longest = len(prompts[order[0]])
            size = max(1, min(limit, GENERATION_TOKENS // longest))
            batch = [i for i in order[:size] if pads or len(prompts[i]) == longest]
            rows = [torch.from_numpy(prompts[i]) for i in batch]
            try:
                generated = plain.generate(
                    **_left_padded(rows, pad, model.tree.device),
                    generation_config=config,
                    logits_processor=LogitsProcessorList([_FiniteScores(batch)]),
                    tokenizer=model.tokenizer,
                    streamer=None if write is None else _Streamer(model, write),
                    # All weights are gathered, so no process waits for another one's answers.
                    synced_gpus=False,
                )
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                limit = len(batch) // 2
                continue
            found = model.tokenizer.batch_decode(generated[:, longest:], skip_special_tokens=True)
            for index, text in zip(batch, found, strict=True):
                texts[index] = text
            order = order[len(batch) :]
            if advance is not None:
                advance(len(batch))
    return texts


def _left_padded(rows: list[Tensor], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Return the inputs of rows of tokens padded on the left."""

    def padded(tensors: list[Tensor], value: int) -> Tensor:
        joined = pad_sequence(tensors, batch_first=True, padding_value=value, padding_side="left")
        return joined.to(device)

    masks = [torch.ones_like(row) for row in rows]
    return {"input_ids": padded(rows, pad), "attention_mask": padded(masks, 0)}


def _pads(model: PreTrainedModel, pad: int) -> bool:
    """Return whether what a model writes is the same behind padding on the left.

    A mask hides padding from attention; whether it hides it from a recurrent state hangs on the
    family.
    """
    config = GenerationConfig(
        max_new_tokens=2,
        min_new_tokens=2,
        do_sample=False,
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_logits=True,
    )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    row = torch.randint(vocabulary, (TRIED_TOKENS,), generator=torch.Generator().manual_seed(0))
    longer = torch.cat((row[:TRIED_PADDING], row))
    alone, company = (
        torch.stack(
            model.generate(**_left_padded(rows, pad, model.device), generation_config=config).logits
        )[:, 0]
        for rows in ([row], [row, longer])
    )
    tolerance = 1e-3 if model.dtype == torch.float32 else 1e-2
    return bool((alone - company).abs().max() < tolerance * alone.abs().max())


class _FiniteScores(LogitsProcessor):  # type: ignore[misc]
    """Ends a generation whose scores are not finite: it would go on with the first token."""

    def __init__(self, prompts: Sequence[int]) -> None:
        self._names = [f"prompt {index + 1}" for index in prompts]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Check the best score of each prompt; others may be ruled out by minus infinity."""
        require_finite(scores.amax(dim=1), self._names)
        return scores


class _Streamer(TextStreamer):  # type: ignore[misc]
    """Hands over text as it is decoded."""

    def __init__(self, model: LoadedModel, write: Callable[[str], None]) -> None:
        super().__init__(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand over a piece."""
        self._write(text)
