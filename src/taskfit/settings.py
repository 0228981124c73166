"""Every setting of a run with its documentation under it; `method` is in `method_settings.py`.

Precedence: defaults < settings file < command line. The parsing is in `settings_file.py`, which
knows no field by name; what a method does not read is found in `unread.py`. Units stand in the
names or in the first words below.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from taskfit.errors import SettingsError
from taskfit.method_base import MethodSettings
from taskfit.method_settings import (
    AnyMethod,
    AutoSettings,
    DistillSettings,
    LabelWordsSettings,
    as_method,
)
from taskfit.remote_settings import RemoteSettings
from taskfit.search_settings import SearchSettings
from taskfit.settings_base import (
    MAX_SEED,
    Auto,
    Device,
    PromptText,
    Section,
    check_set_name,
    known,
)
from taskfit.start_settings import StartSettings

__all__ = [
    "AdapterSettings",
    "CalibrationSettings",
    "DataSettings",
    "ModelSettings",
    "RemoteSettings",
    "RunSettings",
    "SearchSettings",
    "Section",
    "TaskSettings",
    "TrainingSettings",
    "TuningSettings",
    "check_set_name",
    "known",
]

# What `method.name=auto` is for one question; see docs/methods.md and results/defaults.md.
AUTO_METHOD: Literal["head"] = "head"
AUTO_BLEND = ("model", "minilm")
LORA_LEARNING_RATE = 5e-4
# Whole models are trained with much smaller steps than adapters that start from nothing.
FULL_LEARNING_RATE = 2e-5
# Encoders are small, and their heads start from nothing.
ENCODER_LEARNING_RATE = 1e-4


# Value of `data.unlabeled`: what is drawn from the training table leaves these.
REST = "rest"


class DataSettings(Section):
    """What is read, and which part of it is used for what."""

    train: str | None = None
    """File (.csv, .tsv, .jsonl, .json, .parquet, .xlsx; also with .gz) or hub data set id
    (`owner/name`, `owner/name:configuration`). None with a built-in task: its own training set."""
    tests: dict[str, str] = Field(default_factory=dict)
    """Further evaluation sets: name -> file or hub id. A built-in task brings its own as well."""
    validation: str | None = None
    """File or hub id of the validation set. None: `validation_fraction` of the training set."""
    unlabeled: str | None = None
    """File or hub id of texts without labels that `method.name=distill` learns from instead; rest:
    the training texts that `num_train` or `shots_per_class` leaves out, their labels unseen."""
    text: list[str] = Field(default_factory=list)
    """Names of the text columns, in order. Empty: those of the task, or the only candidate."""
    label: str | None = None
    """Name of the label column. None: that of the task, or `label`."""
    soft_labels: dict[str, str] = Field(default_factory=dict)
    """Label -> column with its share (such as the part of raters who chose it), for training on
    distributions. Shares of a row are divided by their sum; the largest one is the label."""
    label_separator: PromptText = Field(default="|", min_length=1)
    """Stands between the labels of a row where `task.multi_label` is set, as in `news|sports`."""
    slices: list[str] = Field(default_factory=list)
    """Columns of the evaluation sets by which metrics are cut up, each by itself and all crossed;
    `gold` is the right label. Empty: those of the built-in set (hans: heuristic and gold)."""
    encoding: str = "utf-8"
    """Text encoding of CSV, TSV and JSON files."""
    quotes: Literal["auto", "marks", "text"] = "auto"
    """Quotes around fields of CSV and TSV files: marks of where they end, or characters of the
    text. auto: marks; in a TSV file as a writer of such marks would have written it, or not."""
    folder: str | None = None
    """Folder in which built-in tasks look first. None: the environment variable TASKFIT_DATA."""
    num_train: int | None = Field(default=None, ge=1)
    """Number of training examples to draw (stratified, nested over sizes). None: all."""
    shots_per_class: int | None = Field(default=None, ge=1)
    """Training examples to draw of each class. Not together with `num_train`."""
    test_fraction: Auto | Annotated[float, Field(ge=0.0, lt=1.0)] = "auto"
    """Share of the training table held out (stratified) as evaluation set `test`, before anything
    else. The same for every `seed`, size and method. auto: 0.2 of a table of 200 rows or more where
    no evaluation set is given, else 0; `taskfit compare` takes 0.3 there."""
    validation_fraction: Auto | Annotated[float, Field(ge=0.0, lt=1.0)] = "auto"
    """Share of the training table held out (stratified) for validation; never trained on. auto: 0.1
    where that makes 50 examples or more, or where something asked for needs them; else 0, since
    fewer choose by chance and are worth more in training."""
    max_validation: int = Field(default=500, ge=1)
    """Most validation examples to use (examples)."""
    max_test: int | None = Field(default=None, ge=1)
    """Most examples of each evaluation set to use, a seeded stratified draw. None: all."""

    @field_validator("tests")
    @classmethod
    def _names_are_file_names(cls, tests: dict[str, str]) -> dict[str, str]:
        for name in tests:
            check_set_name(name)
        return tests


class TaskSettings(Section):
    """What is asked of the model."""

    name: str | None = None
    """Built-in task (cola, mnli, mnli_hans, hans, sentiment, sentiment3) or a task file (.yaml).
    None: made from the columns of the table."""
    instruction: PromptText | None = None
    """Text before the demonstrations; replaces the task's own. In it, or in the line, `{options}`
    is where the label words are listed (`a, b, c`), `{options:or}` the same with that word before
    the last one (`a, b or c`); then their order can be tried, shuffled and averaged over."""
    line: PromptText | None = None
    """One line for demonstrations and query alike, such as ` {sentence} -{label}`."""
    separator: PromptText | None = None
    """Text between instruction, demonstrations and query. None: the task's own (a line break)."""
    label_words: dict[str, PromptText | list[PromptText]] = Field(default_factory=dict)
    """Label -> its word or words, leading space included; replaces the task's own."""
    chat: bool = False
    """Put the same task through the model's chat template."""
    multi_label: bool = False
    """A text may have several of the labels, or none."""
    allow_control_tokens: bool = False
    """Read control tokens that stand in texts, labels or rows as tokens, not as characters."""


class ModelSettings(Section):
    """Which model, and how it is held."""

    name: str = "smollm2-135m"
    """Hub id, local folder, or a packaged model (smollm2-135m)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and arithmetic. auto: bfloat16 where the device computes in it,
    else float16 (with loss scaling) on a GPU and float32 on a CPU."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""
    max_length: int | None = Field(default=None, ge=8)
    """Longest prompt with its completion (tokens). None: the model's own limit."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the decoder layers. auto: only for jobs so long that it pays for itself."""


class TuningSettings(Section):
    """method=sft and method=dpo: instructions, chats, texts and preferences."""

    kind: Literal["auto", "instruction", "chat", "completion", "preference", "text"] = "auto"
    """What the rows are. auto: recognised by the names of their columns."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field -> column, where columns have other names, such as {prompt: question}."""
    turns: Literal["all", "last"] = "all"
    """sft only. Which of the assistant's turns are learned."""
    chat_template: str | None = None
    """How turns are written: a name (alpaca, chatml, headings, plain) or a file of Jinja; saved
    with the run. None: the model's own."""
    beta: float = Field(default=0.1, gt=0)
    """dpo only. Strength of the pull to the model before training."""
    num_samples: int = Field(default=3, ge=0)
    """Validation prompts that are answered at every validation and in the report."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer to these (tokens)."""


class AdapterSettings(Section):
    """Which weights are trained."""

    weights: Literal["full", "lora", "qlora"] = "lora"
    """full: every weight; lora: low-rank adapters on all linear layers (PEFT); qlora: the same on
    a base in 4 bits (NF4)."""
    double_quantization: bool = True
    """qlora only. Quantize the scales of the 4-bit blocks too; saves 0.4 bits a weight."""
    layers: Literal["auto", "all", "two_thirds", "half"] | Annotated[int, Field(ge=1)] = "auto"
    """Which decoder layers are trained: all, the upper two thirds or half, or a number of them from
    the top. What lies below runs once a text, without gradients, and is reused in every epoch and
    validation. auto: two_thirds for classifiers with adapters; all for `weights=full`, sft and
    dpo."""
    cache_gigabytes: float | None = Field(default=2.0, ge=0)
    """Most main memory for what the layers below give out (10^9 bytes); the rest lies in a
    memory-mapped file of the run folder. None: nothing is kept, they run again in each step."""
    targets: Literal["all", "attention", "mlp"] | list[str] = "all"
    """Which linear layers get adapters: all, those of attention, all others, or names such as
    [q_proj, v_proj]."""
    lora_rank: int = Field(default=8, ge=1, le=16_384)
    """Rank of the adapters."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """Scale of the adapters; they are multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = Field(default=0.0, ge=0.0, le=0.99)
    """Dropout before the adapters, in training."""
    rank_stabilized: bool = False
    """Multiply adapters by lora_alpha / sqrt(lora_rank) instead (rsLoRA, arXiv:2312.03732)."""
    dora: bool = False
    """Train the lengths of the weights' columns apart from their directions (arXiv:2402.09353)."""

    @property
    def trained_layers(self) -> str | int:
        """Return which layers are trained, with `auto` as a classifier takes it."""
        if self.layers == "auto":
            return "all" if self.weights == "full" else "two_thirds"
        return self.layers


class TrainingSettings(Section):
    """The loop."""

    epochs: Auto | Annotated[float, Field(gt=0)] = "auto"
    """Passes over the training set. auto: as many as make enough steps for the number of labels
    (`training/length.py`); 1 for sft and dpo."""
    max_steps: int | None = Field(default=None, ge=1)
    """Most optimizer steps; ends training early (steps)."""
    batch_size: Auto | Annotated[int, Field(ge=1)] = "auto"
    """Examples per optimizer step, however the step is cut into forward passes. auto: 16, and 8
    where texts are long or few."""
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit"] = "adamw"
    """adamw: moments in float32; adamw8bit: in 8 bits (bitsandbytes); paged_adamw8bit: the same,
    moved to main memory when the GPU's is full (on a CPU: as adamw8bit)."""
    sharding: Literal["none", "full"] = "none"
    """Under torchrun. none: every process holds the model, and gradients are added up (DDP); full:
    weights, gradients and optimizer are divided over the processes (FSDP2), for full fine-tuning
    of what one device cannot hold."""
    gradient_checkpointing: bool = False
    """Keep only the layers' inputs and compute the rest again in the backward pass: less memory,
    about a third more time."""
    learning_rate: Auto | Annotated[float, Field(gt=0)] = "auto"
    """Peak learning rate of AdamW. auto: 5e-4 for adapters, 2e-5 for `adapter.weights=full`, 1e-4
    for `method.name=encoder` (always full)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up. None: `warmup_fraction` of all steps."""
    warmup_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of all steps spent on linear warm-up; then linear decay to zero."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient is clipped to this L2 norm once per optimizer step."""
    token_budget: int | None = Field(default=None, ge=16)
    """Most unique tokens in one forward pass of training (tokens), or tokens with all repetitions
    where a model runs padded; halved when memory runs out. None: 2048, or the longest example if
    that is longer."""
    score_token_budget: int | None = Field(default=None, ge=16)
    """Most unique tokens in one forward pass of scoring (tokens). None: 1024, or the longest
    example with all its candidate labels if that is longer."""
    eval_every_steps: int | None = Field(default=None, ge=1)
    """Steps between validations. None: five times over the run."""
    save_every_steps: int | None = Field(default=None, ge=1)
    """Steps between resumable checkpoints. None: at validations, and every ten minutes between
    them, unless writing would take more than a twentieth of the time since the last one."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop after this many validations without improvement. None: never."""
    keep: Literal["best", "last"] = "best"
    """Which weights the run ends with. best: the latest that are not significantly worse than the
    best validation (Brier score of classifiers, else the loss; paired, one-sided 5 %); last: those
    of the last step, as also where there is no validation set."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder where the package is installed."""
    trackers: list[Literal["tensorboard", "mlflow", "trackio"]] = Field(default_factory=list)
    """Where else settings, metrics and report of the run are recorded; each needs its package.
    mlflow: the folder `mlruns` here, or the server that MLFLOW_TRACKING_URI names; trackio: its
    local folder. A tracker that fails is left out with a note, and the run goes on."""


class CalibrationSettings(Section):
    """What is measured on the validation set after training, for surer probabilities."""

    temperature: bool = False
    """Divide log-probabilities by one number, fitted on the validation set, so that they are as
    sure as they are right (Guo et al. 2017). The answers stay the same."""
    prediction_sets: bool = False
    """Keep what `taskfit predict --coverage` needs: sets of labels that hold the right one with a
    chosen probability (conformal prediction). Of 200 validation examples or more, half are kept
    for this alone."""
    thresholds: Literal["auto", "none", "f1", "precision", "recall"] = "auto"
    """Several labels a text only: from which probability on each label is given, chosen on the
    validation set, or on what cross-validation predicts of a small table. f1: for the best F1;
    precision, recall: for the one of `target`; none: from one half. auto: f1 where such texts are
    there anyway."""
    target: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """The precision or recall that `thresholds` is to keep for every label."""


class RunSettings(Section):
    """All of one run."""

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of every draw: splits, demonstrations, order, dropout, adapter weights."""
    data: DataSettings = DataSettings()
    task: TaskSettings = TaskSettings()
    model: ModelSettings = ModelSettings()
    method: AnyMethod = AutoSettings()
    """How the model is adapted and read: the settings of the method that `name` names."""
    tuning: TuningSettings = TuningSettings()
    remote: RemoteSettings = RemoteSettings()
    adapter: AdapterSettings = AdapterSettings()
    training: TrainingSettings = TrainingSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    search: SearchSettings = SearchSettings()
    start: StartSettings = StartSettings()

    @field_validator("method", mode="before")
    @classmethod
    def _name_left_out(cls, method: object) -> object:
        return {"name": "auto", **method} if isinstance(method, dict) else method

    def resolved(self, *, questions: bool = False) -> "RunSettings":
        """Return the settings with defaults that depend on others filled in.

        Args:
            questions: Whether the task has several questions, which label words answer.

        Raises:
            SettingsError: If settings contradict each other.
        """
        settings = self
        if isinstance(self.method, AutoSettings):
            return self.model_copy(update={"method": self._chosen(questions)}).resolved()
        self._check_blend()
        if isinstance(self.method, (LabelWordsSettings, DistillSettings)):
            method = self.method.model_copy(update={"loss": self.method.word_loss})
            settings = settings.model_copy(update={"method": method})
        if self.method.name == "encoder":
            adapter = self.adapter.model_copy(update={"weights": "full"})
            settings = settings.model_copy(update={"adapter": adapter})
        if settings.adapter.layers == "auto":
            layers = "all" if self.method.is_tuning else settings.adapter.trained_layers
            adapter = settings.adapter.model_copy(update={"layers": layers})
            settings = settings.model_copy(update={"adapter": adapter})
        if settings.training.learning_rate == "auto":
            full = settings.adapter.weights == "full"
            rate = FULL_LEARNING_RATE if full else LORA_LEARNING_RATE
            rate = ENCODER_LEARNING_RATE if settings.method.name == "encoder" else rate
            training = settings.training.model_copy(update={"learning_rate": rate})
            settings = settings.model_copy(update={"training": training})
        return settings

    def _chosen(self, questions: bool) -> MethodSettings:
        """Return the method that `auto` is."""
        given = self.method
        assert isinstance(given, AutoSettings)
        if not questions:
            # Trained in full, the model has no features from before training any more.
            blend = AUTO_BLEND[1:] if self.adapter.weights == "full" else AUTO_BLEND
            return as_method(
                given, AUTO_METHOD, blend=list(blend) if given.blend is None else given.blend
            )
        unread = given.model_dump(exclude_defaults=True).keys() - LabelWordsSettings.model_fields
        if unread:
            raise SettingsError(
                f"method.name=auto is label_words for a task of several questions, which does not "
                f"read {', '.join(f'method.{name}' for name in sorted(unread))}. Leave it out."
            )
        return as_method(given, "label_words")

    def _check_blend(self) -> None:
        """Refuse to blend with features of a model that is not there, or not as it was."""
        if "model" not in self.method.blended:
            return
        if self.adapter.weights == "full":
            raise SettingsError(
                "method.blend=model needs the model as it was before training, and "
                "adapter.weights=full changes it. Use lora or qlora, or blend with an encoder."
            )
        if not self.method.reads_model:
            raise SettingsError(
                f"method.blend=model needs a causal language model, and method {self.method.name} "
                "loads none. Blend with an encoder."
            )
