"""Find the module that gives out what a model's LM head reads.

Legend: B rows, L tokens of a row, D hidden width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from taskfit.models.attention import TreeLayout


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return what to call for the states that enter a model's LM head.

    That is transformers' own decoder, or where something stands between it and the head (BERT's
    family as decoders, ModernBERT's decoder) or it is not told apart (Llama 4): the whole model,
    whose head is kept from computing.
    """
    decoder = model.get_decoder()
    is_body = isinstance(decoder, PreTrainedModel) and decoder.get_output_embeddings() is None
    return decoder if is_body and not _between(model, decoder) else HeadInput(model)


def _between(model: PreTrainedModel, decoder: nn.Module) -> bool:
    """Return whether a model has weights beside those of the part with the decoder and its head."""
    known = {id(p) for p in model.get_output_embeddings().parameters()}
    for child in model.children():
        if any(module is decoder for module in child.modules()):
            known |= {id(p) for p in child.parameters()}
    return any(id(p) not in known for p in model.parameters())


class HeadInput(nn.Module):
    """Runs a whole model but for its LM head; a decoder to whoever calls it."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Bind to a model; nothing in it changes."""
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        tree_layout: TreeLayout | None = None,
    ) -> BaseModelOutputWithPast:
        """Return what enters the head as the last hidden state, (B, L, D).

        Args:
            input_ids: Token ids, (B, L).
            position_ids: Their positions, where they are not counted from the left.
            past_key_values: What stands before.
            use_cache: Whether keys and values are kept.
            tree_layout: The tree that the tokens are, for its attention.
        """
        options = {
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "tree_layout": tree_layout,
        }
        given = {name: value for name, value in options.items() if value is not None}
        with _reading(self.model.get_output_embeddings()) as found:
            output = self.model(input_ids=input_ids, use_cache=use_cache, **given)
        return BaseModelOutputWithPast(
            last_hidden_state=found[0], past_key_values=output.get("past_key_values")
        )


@contextmanager
def _reading(head: nn.Module) -> Iterator[list[Tensor]]:
    """Note what enters a head, which gives out next to nothing meanwhile."""
    found: list[Tensor] = []

    def forward(states: Tensor) -> Tensor:
        found.append(states)
        return states[..., :1]

    # An attribute of the object hides the method of the class.
    head.forward = forward
    try:
        yield found
    finally:
        del head.forward
