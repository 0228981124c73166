"""Which engine runs a model over token trees."""

from transformers import PreTrainedModel

from taskfit.models.causal_model import CausalModel
from taskfit.models.padded_model import PaddedModel
from taskfit.models.served import UnservedError
from taskfit.models.tree_model import TreeModel


def causal_engine(
    model: PreTrainedModel, *, verify: bool = True, adapter: str | None = None
) -> CausalModel:
    """Return the token tree where it serves a model, padded batches elsewhere.

    Args:
        model: A causal LM.
        verify: Compare with plain forward passes (a few tokens; do not skip it for models from
            outside).
        adapter: Of several on the model, the one to compute with; see `CausalModel.adapter`.

    Raises:
        ModelError: If neither serves the model, or scores are not finite.
    """
    try:
        return TreeModel(model, verify=verify, adapter=adapter)
    except UnservedError as error:
        return PaddedModel(model, refusal=error.reason, verify=verify, adapter=adapter)
