"""The model card of an export: where it comes from, what it is worth, how to use it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from taskfit.export.check import Comparison
from taskfit.export.source import Source
from taskfit.runs.run_folder import DATA_FILE

# Licences of the models that come out of packages, from their own model cards.
PACKAGED_LICENSES = {"smollm2-135m": "apache-2.0"}
SHOWN_SETTINGS = ("method", "adapter", "training", "task", "tuning")

USE = {
    "merged": """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # or the repository's name
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))""",
    "chat": """from transformers import pipeline

generate = pipeline("text-generation", model=".")  # or the repository's name
print(generate([{"role": "user", "content": "Name three rivers."}], max_new_tokens=60))""",
    "classification": """import json
from transformers import pipeline

folder = "."  # where config.json and prompt.json are
with open(f"{folder}/prompt.json", encoding="utf-8") as file:
    pieces = json.load(file)["pieces"]
classify = pipeline("text-classification", model=folder, top_k=None)

texts = {COLUMNS}
print(classify("".join(p["text"] if "text" in p else texts[p["column"]] for p in pieces)))""",
    "gguf": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", gguf_file="FILE")
tokenizer = AutoTokenizer.from_pretrained(".", gguf_file="FILE")
# or: llama-cli -m FILE""",
}


def write_card(
    source: Source,
    folder: Path,
    *,
    form: str,
    checks: Sequence[Comparison],
    notes: Sequence[str] = (),
    file: str = "",
) -> None:
    """Write README.md with data, settings, results, checks and use.

    Args:
        source: The run.
        folder: Of the export.
        form: merged, classification or gguf.
        checks: What was compared at export.
        notes: Sentences about this export.
        file: Name of the GGUF file.
    """
    result = source.result
    parts = [
        _front_matter(source, form),
        f"# {result.name}: {result.model} on {result.task}\n",
        f"Made by taskfit {result.versions.get('taskfit', '')} with method `{result.method}` "
        f"({_trained(source)}) from {source.base}"
        f"{'' if source.saved['revision'] is None else ', revision ' + source.saved['revision']}; "
        f"licence of that model: {base_license(source.base) or 'not known here'}.\n",
        *(f"{note}\n" for note in notes),
        f"## Use\n\n```python\n{_use(source, form, file)}\n```\n",
        f"## Results\n\n{_results(source)}\n",
        f"## Data\n\n{_data(source)}\n",
        "## Checked at export\n\n" + "\n".join(f"- {c.describe()}" for c in checks) + "\n",
        f"## Settings\n\n```yaml\n{_settings(source)}```\n",
        "## Versions\n\n" + ", ".join(f"{k} {v}" for k, v in result.versions.items()) + "\n",
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def base_license(name: str) -> str | None:
    """Return the licence that a base model's own card names, if it lies on this machine."""
    if name in PACKAGED_LICENSES:
        return PACKAGED_LICENSES[name]
    card: Any = Path(name).expanduser() / "README.md"
    if not Path(card).is_file():
        try:
            card = try_to_load_from_cache(name, "README.md")
        except ValueError:  # no name of a repository
            return None
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    text = Path(card).read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n"):
        return None
    try:
        found = yaml.safe_load(text[4:].split("\n---", 1)[0])
    except yaml.YAMLError:
        return None
    return str(found["license"]) if isinstance(found, dict) and found.get("license") else None


def _front_matter(source: Source, form: str) -> str:
    kind = "text-classification" if form == "classification" else "text-generation"
    data: dict[str, Any] = {"pipeline_tag": kind, "tags": ["taskfit", source.method]}
    if form != "gguf":
        data["library_name"] = "transformers"
    if "/" in source.base and not Path(source.base).expanduser().exists():
        data["base_model"] = source.base
    licence = base_license(source.base)
    if licence is not None:
        data["license"] = licence
    return f"---\n{yaml.safe_dump(data, sort_keys=True)}---\n"


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


def _use(source: Source, form: str, file: str) -> str:
    if form == "merged" and source.saved.get("chat_template"):
        form = "chat"
    text = USE[form].replace("FILE", file)
    if form == "classification":
        columns = {column: "..." for column in source.saved["task"]["text"]}
        text = text.replace("{COLUMNS}", json.dumps(columns, ensure_ascii=False))
    return text


def _results(source: Source) -> str:
    result = source.result
    if source.is_tuned:
        rows = ["| set | metric | before | after | 95 % |", "|---|---|---|---|---|"]
        for name, after in result.details["after"].items():
            before = result.details["before"].get(name, {})
            for metric in ("loss", "perplexity", "reward_accuracy", "reward_margin"):
                if metric in after:
                    interval = (
                        f"{after['loss_low']:.3f} to {after['loss_high']:.3f}"
                        if metric == "loss"
                        else ""
                    )
                    rows.append(
                        f"| {name} | {metric.replace('_', ' ')} | {before[metric]:.3f} "
                        f"| {after[metric]:.3f} | {interval} |"
                    )
        return "\n".join(rows) if len(rows) > 2 else "No set was measured."
    rows = ["| set | n | accuracy (95 %) | MCC | macro F1 | ECE |", "|---|---|---|---|---|---|"]
    for name, found in result.evaluations.items():
        low, high = found.intervals["accuracy"]
        rows.append(
            f"| {name} | {found.num_examples:,} | {found.accuracy:.3f} ({low:.3f} to {high:.3f}) "
            f"| {found.mcc:.3f} | {found.macro_f1:.3f} | {found.ece:.3f} |"
        )
    return "\n".join(rows) if len(rows) > 2 else "No set was measured."


def _data(source: Source) -> str:
    data, result = source.settings.data, source.result
    name = data.train or f"built-in task {source.settings.task.name}"
    lines = [f"- training: {_file_name(name)}, {result.num_train:,} examples"]
    lines += [f"- set {key}: {_file_name(value)}" for key, value in data.tests.items()]
    path = source.folder / DATA_FILE
    if path.is_file():
        hashes: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8"))
        lines += [f"- hash of {key}: `{value}`" for key, value in hashes.items()]
    return "\n".join(lines)


def _file_name(source: str) -> str:
    # Folders of the user's machine are nobody's business.
    path = Path(source).expanduser()
    return path.name if path.is_absolute() or path.exists() else source


def _settings(source: Source) -> str:
    plain = source.settings.model_dump(mode="json", exclude_defaults=True)
    shown = {key: plain[key] for key in SHOWN_SETTINGS if plain.get(key)}
    shown = {"seed": source.settings.seed, **shown}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
