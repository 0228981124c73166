"""Make docs/models.md: each type in transformers' table of causal models, tried as a tiny model.

python tests/models/families.py > docs/models.md
"""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging

from taskfit.errors import ModelError, first_line
from taskfit.models.adapters import add_adapter
from taskfit.models.causal_model import CausalModel
from taskfit.models.engine import causal_engine
from taskfit.settings import AdapterSettings
from tiny_families import (
    causal_types,
    decoder_setting,
    difference_behind_a_prefix,
    difference_to_plain_passes,
    idle_adapters,
    multimodal_types,
    tiny_family,
)

INTRODUCTION = """\
# Models

Every type of causal language model in transformers {version} ({count} types), and what runs it;
then those of its {others} other types of models of images and text of which a tiny one could be
made. Made with torch {torch} by

    python tests/models/families.py > docs/models.md

Of each type a tiny random model (a few layers, one of each kind that its default settings mix,
windows of 8 tokens) was loaded as taskfit loads models, and the engine is what the code decided
then. Nothing in the tables was written by hand. A model of yours is looked at in the same way when
it is loaded, so its own settings decide.

- **Tree**: every distinct prefix runs once, whatever follows it. Fastest.
- **Padded**: layers that cannot fork inside of a row of tokens read each text whole, in batches of
  like length. All methods and commands work, and scores are as exact. What texts share runs again
  with each of them in training. In scoring, what stands before all texts runs once and copies of
  the model's states go on from there (prefix: *once*), or with each text where states cannot be
  gone on from (*each*).
- **Refused**: neither is exact, or transformers does not build the model.

*Difference* is the largest one of any score from plain passes of the same model over one text
alone, in standard deviations of scores (float32): for texts of 5 to 21 tokens, in company and
behind a prefix. *LoRA* says whether all linear layers that get an adapter by default took one and
got a gradient in a step of training, or which did not. Parts that see, hear or only choose get
none.

Types whose models are encoders by default stand among the refused, and where a setting makes
decoders of them, with it among the others. Of models of images and text the text part is used.

Not tried, since no tiny one was made: {untried}.
"""


NOT_BUILT = "transformers does not build it from its default settings: "
# In the names of classes of recurrent layers, and of settings of windows.
RECURRENT = ("mamba", "rwkv", "lstm", "recurrent", "deltanet")
WINDOWS = ("sliding_window", "window_size", "attention_window_size", "local_attention")


@dataclass(frozen=True, slots=True)
class Row:
    """What a type came to.

    Attributes:
        name: The type, and what was set in its settings.
        architecture: The class in transformers.
        layers: What the layers hold.
        engine: `tree` or `padded`.
        reason: Why it is not the tree.
        prefix: `once` or `each`.
        lora: Which adapters learn.
        difference: Largest difference of scores (standard deviations).
    """

    name: str
    architecture: str
    layers: str
    engine: str = ""
    reason: str = ""
    prefix: str = ""
    lora: str = ""
    difference: float = 0.0


def main() -> None:
    """Print the page."""
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: list[Row] = []
    for model_type in causal_types():
        rows.append(row_of(model_type))
        if rows[-1].engine == "" and decoder_setting(model_type):
            rows.append(row_of(model_type, as_decoder=True))
    rows += (others := [row_of(model_type) for model_type in multimodal_types()])
    served = [row for row in rows if row.engine]
    # What is not built here may be for want of sizes that fit each other.
    untried = [row for row in others if row.reason.startswith(NOT_BUILT)]
    refused = [row for row in rows if not row.engine and row not in untried]
    tree = [row for row in served if row.engine == "tree"]
    padded = [row for row in served if row.engine == "padded"]
    lines = [
        INTRODUCTION.format(
            version=transformers.__version__,
            count=len(causal_types()),
            others=len(others),
            torch=torch.__version__.split("+")[0],
            untried=", ".join(row.name for row in untried),
        )
    ]
    lines += [f"## Tree: {len(tree)}", ""]
    lines += table("type", "class", "layers", "LoRA", "difference")
    lines += [
        line(row.name, row.architecture, row.layers, row.lora, f"{row.difference:.0e}")
        for row in tree
    ]
    lines += ["", f"## Padded: {len(padded)}", ""]
    lines += table("type", "class", "layers", "why not the tree", "prefix", "LoRA", "difference")
    for row in padded:
        found = (row.name, row.architecture, row.layers, row.reason, row.prefix, row.lora)
        lines.append(line(*found, f"{row.difference:.0e}"))
    lines += ["", f"## Refused: {len(refused)}", ""]
    lines += table("type", "class", "reason")
    lines += [line(row.name, row.architecture, row.reason) for row in refused]
    sys.stdout.write("\n".join(lines) + "\n")


def table(*columns: str) -> list[str]:
    """Return the first lines of a table."""
    return [line(*columns), "|" + "---|" * len(columns)]


def line(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def row_of(model_type: str, *, as_decoder: bool = False) -> Row:
    """Try a type."""
    names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES | MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    architecture = names[model_type]
    name = f"`{model_type}`" + (f", {decoder_setting(model_type)}: true" * as_decoder)
    try:
        model = tiny_family(model_type, as_decoder=as_decoder)
    except Exception as error:
        return Row(name, architecture, "", reason=f"{NOT_BUILT}{cell(error)}")
    layers = layers_of(model)
    try:
        engine = causal_engine(model)
    except ModelError as error:
        reason = str(error).split("cannot be used: ")[-1].split("nor in padded batches: ")[-1]
        reason = reason.split(". Use ")[0].split(". It does")[0]
        return Row(name, architecture, layers, reason=reason)
    difference = max(difference_to_plain_passes(engine), difference_behind_a_prefix(engine))
    return Row(
        name,
        architecture,
        layers,
        engine="tree" if engine.shares_prefixes else "padded",
        reason=engine.refusal or "",
        prefix="once" if engine.shares_prefixes or engine.continues else "each",
        lora=lora_of(engine),
        difference=difference,
    )


def layers_of(model: PreTrainedModel) -> str:
    """Say what a model's layers hold, by its settings and the names of its modules."""
    settings = model.config.get_text_config().to_dict()
    classes = {type(module).__name__.lower() for module in model.modules()}
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    kinds = sorted(set(settings.get("layer_types") or settings.get("layers_block_type") or ()))
    found = [kind.replace("_", " ") for kind in kinds]
    if not found:
        recurrent = any(word in one for one in classes for word in RECURRENT)
        attends = any("attention" in one for one in classes)
        found = ["attention"] * attends + ["recurrent"] * recurrent
    windows = [name for name in WINDOWS if settings.get(name)]
    if windows and not any("sliding" in kind for kind in found):
        found.append("windows")
    if settings.get("alibi") or model.config.model_type in ("bloom", "mpt"):
        found.append("ALiBi")
    if any("expert" in name for name in names):
        found.append("experts")
    return ", ".join(found)


def lora_of(engine: CausalModel) -> str:
    """Put adapters on all linear layers, run one step, and say which got no gradient."""
    engine.model.requires_grad_(False)
    settings = AdapterSettings(weights="lora", lora_dropout=0.0, layers="all")
    try:
        add_adapter(engine.model, settings, seed=0)
        idle = idle_adapters(engine)
    except Exception as error:
        return f"fails: {cell(error)}"
    return "all" if not idle else f"not {', '.join(idle)}"


def cell(error: Exception) -> str:
    """Return the first sentence of an error, fit for a table."""
    return first_line(error).replace("|", "/").split(". ")[0].strip(" .")[:160]


if __name__ == "__main__":
    main()
