"""The model card of an export: where it comes from, what it is worth, how to use it."""

import json
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import ModelCardData, metadata_load, try_to_load_from_cache

from taskfit.export.check import Exported
from taskfit.export.source import Source
from taskfit.runs.file_names import DATA_FILE
from taskfit.yaml_text import dump_yaml

# Licences of the models that come out of packages, from their own model cards.
PACKAGED_LICENSES = {"smollm2-135m": "apache-2.0"}
CLASSIFIERS = ("classification", "adapter", "onnx")
LIBRARIES = {"gguf": None, "adapter": "peft"}
SHOWN_SETTINGS = ("method", "adapter", "training", "task", "tuning")
TEMPLATE = Path(__file__).with_name("card.md")


def write_card(source: Source, folder: Path, *, form: str, exported: Exported) -> None:
    """Write README.md with data, settings, results, checks and use.

    Args:
        source: The run.
        folder: Of the export.
        form: See `export.Form`.
        exported: What came of it.
    """
    license_ = base_license(source.base)
    is_on_hub = "/" in source.base and not Path(source.base).expanduser().exists()
    front_matter = ModelCardData(
        pipeline_tag="text-classification" if form in CLASSIFIERS else "text-generation",
        tags=["taskfit", source.method],
        library_name=LIBRARIES.get(form, "transformers"),
        base_model=source.base if is_on_hub else None,
        license=license_,
    )
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        front_matter=front_matter.to_yaml(),
        result=source.result,
        trained=_trained(source),
        base=source.base,
        revision=source.saved["revision"],
        license=license_,
        notes=exported.notes,
        form=form,
        file=next((path.name for path in folder.glob("*.gguf")), ""),
        is_chat=bool(source.saved.get("chat_template")),
        data=_data(source),
        checks=exported.checks,
        settings=_settings(source),
        **{"is_filled": False, "request": None, **exported.use},
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def base_license(name: str) -> str | None:
    """Return the licence that a base model's own card names, if it lies on this machine."""
    if name in PACKAGED_LICENSES:
        return PACKAGED_LICENSES[name]
    card = Path(name).expanduser() / "README.md"
    try:
        cached = None if card.is_file() else try_to_load_from_cache(name, "README.md")
        if not card.is_file() and not isinstance(cached, str):
            return None
        found = metadata_load(cached if isinstance(cached, str) else card)
    except (ValueError, yaml.YAMLError):  # no name of a repository, or no front matter
        return None
    return str(found["license"]) if found and found.get("license") else None


def _trained(source: Source) -> str:
    adapter = source.settings.adapter
    low_rank = "DoRA" if adapter.dora else "LoRA"
    words = {"full": "weights", "lora": low_rank, "qlora": f"{low_rank} on a base in 4 bits"}
    # Runs from before there was a choice of layers have `auto`, and all were trained.
    if adapter.layers in ("all", "auto"):
        return "all weights trained" if source.weights == "full" else words[source.weights]
    shares = {"two_thirds": "two thirds of the layers", "half": "half of the layers"}
    part = shares.get(str(adapter.layers), f"{adapter.layers} layers")
    return f"{words[source.weights]} of the upper {part} trained"


def _data(source: Source) -> list[str]:
    data, path = source.settings.data, source.folder / DATA_FILE
    name = data.train or f"built-in task {source.settings.task.name}"
    lines = [f"training: {_file_name(name)}, {source.result.num_train:,} examples"]
    lines += [f"set {key}: {_file_name(value)}" for key, value in data.tests.items()]
    hashes = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return lines + [f"hash of {key}: `{value}`" for key, value in hashes.items()]


def _file_name(source: str) -> str:
    # Folders of the user's machine are nobody's business.
    path = Path(source).expanduser()
    return path.name if path.is_absolute() or path.exists() else source


def _settings(source: Source) -> str:
    plain = source.settings.model_dump(mode="json", exclude_defaults=True)
    shown = {key: plain[key] for key in SHOWN_SETTINGS if plain.get(key)}
    shown = {"seed": source.settings.seed, **shown}
    return dump_yaml(shown)
