"""Every setting of a run, with its documentation under it, all on one page.

Precedence: defaults < settings file < command line. The parsing is in `settings_file.py`, which
knows no field by name. Units stand in the names or in the first words below.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# Whole models are trained with much smaller steps than adapters that start from nothing.
FULL_LEARNING_RATE = 2e-5


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, texts below fields are their help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataSettings(Section):
    """What is read, and which part of it is used for what."""

    train: str | None = None
    """File (.csv, .tsv, .jsonl, .parquet, also with .gz) or hub data set id (`owner/name`,
    `owner/name:configuration`). None with a built-in task: the task's own training set."""
    tests: dict[str, str] = Field(default_factory=dict)
    """Further evaluation sets: name -> file or hub id. A built-in task brings its own as well."""
    validation: str | None = None
    """File or hub id of the validation set. None: `validation_fraction` of the training set."""
    text: list[str] = Field(default_factory=list)
    """Names of the text columns, in order. Empty: those of the task, or the only candidate."""
    label: str | None = None
    """Name of the label column. None: that of the task, or `label`."""
    encoding: str = "utf-8"
    """Text encoding of CSV, TSV and JSONL files."""
    folder: str | None = None
    """Folder in which built-in tasks look first. None: the environment variable TASKFIT_DATA."""
    num_train: int | None = Field(default=None, ge=1)
    """Number of training examples to draw (stratified, nested over sizes). None: all."""
    shots_per_class: int | None = Field(default=None, ge=1)
    """Training examples to draw of each class. Not together with `num_train`."""
    validation_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the training table held out (stratified) for validation; never trained on."""
    max_validation: int = Field(default=500, ge=1)
    """Most validation examples to use (examples)."""
    max_test: int | None = Field(default=None, ge=1)
    """Most examples of each evaluation set to use, a seeded stratified draw. None: all."""


class TaskSettings(Section):
    """What is asked of the model."""

    name: str | None = None
    """Built-in task (cola, mnli, hans, sentiment) or a task file (.yaml). None: made from the
    columns of the table."""
    instruction: str | None = None
    """Text before the demonstrations; replaces the task's own."""
    line: str | None = None
    """One line for demonstrations and query alike, such as ` {sentence} -{label}`."""
    separator: str | None = None
    """Text between instruction, demonstrations and query. None: the task's own (a line break)."""
    label_words: dict[str, str | list[str]] = Field(default_factory=dict)
    """Label -> its word or words, leading space included; replaces the task's own."""
    chat: bool = False
    """Put the same task through the model's chat template."""


class ModelSettings(Section):
    """Which model, and how it is held."""

    name: str = "smollm2-135m"
    """Hub id, local folder, or a packaged model (smollm2-135m)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and arithmetic. auto: bfloat16 where the device computes in it,
    else float32."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    max_length: int | None = Field(default=None, ge=8)
    """Longest prompt with its completion (tokens). None: the model's own limit."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the decoder layers. auto: only for jobs so long that it pays for itself."""


class MethodSettings(Section):
    """How the model is adapted and read."""

    name: Literal["in_context", "label_words"] = "label_words"
    """in_context: no training; label_words: the same prompt, trained."""
    num_demonstrations: int | None = Field(default=None, ge=0)
    """Labelled examples shown in the prompt. None: the task's own number."""
    demonstrations: Literal["fixed", "random", "balanced"] = "balanced"
    """fixed: the first of the training set; random: a seeded draw; balanced: the same number of
    every class, as far as it goes. The order is seeded."""
    calibration: Literal["none", "contextual", "batch"] = "none"
    """in_context only. contextual: divide by the mean over content-free inputs; batch: subtract
    the mean log-probability over training texts (up to `data.max_validation`, labels unseen)."""
    loss: Literal["labels", "vocabulary"] = "labels"
    """label_words only. Cross-entropy over the task's labels, or over the whole vocabulary as in
    the published recipe."""


class AdapterSettings(Section):
    """Which weights are trained."""

    weights: Literal["full", "lora"] = "lora"
    """full: every weight; lora: low-rank adapters on all linear layers (PEFT)."""
    lora_rank: int = Field(default=8, ge=1)
    """Rank of the adapters."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """Scale of the adapters; they are multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Dropout before the adapters, in training."""


class TrainingSettings(Section):
    """The loop."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training set."""
    max_steps: int | None = Field(default=None, ge=1)
    """Most optimizer steps; ends training early (steps)."""
    batch_size: int = Field(default=16, ge=1)
    """Examples per optimizer step, however the step is cut into forward passes."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate of AdamW. Where it is not given, `adapter.weights=full` takes 2e-5."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up. None: `warmup_fraction` of all steps."""
    warmup_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of all steps spent on linear warm-up; then linear decay to zero."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient is clipped to this L2 norm once per optimizer step."""
    token_budget: int | None = Field(default=None, ge=16)
    """Most unique tokens in one forward pass of training (tokens); halved when memory runs out.
    None: 2048, or the longest example if that is longer."""
    score_token_budget: int | None = Field(default=None, ge=16)
    """Most unique tokens in one forward pass of scoring (tokens). None: 1024, or the longest
    example with all its candidate labels if that is longer."""
    eval_every_steps: int | None = Field(default=None, ge=1)
    """Steps between validations. None: five times over the run."""
    save_every_steps: int | None = Field(default=None, ge=1)
    """Steps between resumable checkpoints. None: at every validation."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop after this many validations without improvement. None: never."""
    keep: Literal["best", "last"] = "best"
    """Which weights the run ends with: the best by the validation metric, or the last."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder where the package is installed."""


class RunSettings(Section):
    """All of one run."""

    seed: int = Field(default=0, ge=0)
    """Seed of every draw: splits, demonstrations, order, dropout, adapter weights."""
    data: DataSettings = DataSettings()
    task: TaskSettings = TaskSettings()
    model: ModelSettings = ModelSettings()
    method: MethodSettings = MethodSettings()
    adapter: AdapterSettings = AdapterSettings()
    training: TrainingSettings = TrainingSettings()

    def resolved(self) -> "RunSettings":
        """Return the settings with defaults that depend on others filled in."""
        if self.adapter.weights == "full" and "learning_rate" not in self.training.model_fields_set:
            training = self.training.model_copy(update={"learning_rate": FULL_LEARNING_RATE})
            return self.model_copy(update={"training": training})
        return self
