"""The section `method`: how the model is adapted and read. All others are in `settings.py`."""

from typing import Literal

from pydantic import Field

from taskfit.settings_base import Section

# Methods that learn from rows of text, not from labels.
TUNING = ("sft", "dpo")


class MethodSettings(Section):
    """How the model is adapted and read."""

    name: Literal[
        "auto",
        "in_context",
        "label_words",
        "head",
        "label_text",
        "distill",
        "probe",
        "knn",
        "majority",
        "tfidf",
        "encoder",
        "remote",
        "sft",
        "dpo",
    ] = "auto"
    """auto: what did best on data like these (docs/methods.md); in_context: no training;
    label_words: the same prompt, trained; head: a linear head on the last token; label_text: the
    label as generated text; distill: a student without context learns from a teacher with it;
    probe: logistic regression on frozen features; knn: nearest neighbours in them; majority, tfidf:
    without a language model; encoder: a fine-tuned encoder; remote: an OpenAI-compatible endpoint;
    sft: texts and answers learned as they are; dpo: better and worse answers (section `tuning`)."""
    num_demonstrations: int | None = Field(default=None, ge=0)
    """Labelled examples shown in the prompt. None: the task's own number."""
    demonstrations: Literal["fixed", "random", "balanced", "nearest"] = "balanced"
    """fixed: the first of the training set; random: a seeded draw; balanced: the same number of
    every class, as far as it goes; nearest (in_context only): for each text the most similar
    training texts, the most similar last. The order is seeded."""
    retriever: str = "minilm"
    """demonstrations=nearest and knn only. What measures similarity: `model` (the model's own
    hidden states), or an encoder: `minilm`, a hub id, a folder."""
    features: str = "model"
    """probe only. What the logistic regression reads: `model` (the model's own last hidden state),
    an encoder (`minilm`, a hub id, a folder), or `both`: those of the model and of MiniLM."""
    num_orders: int = Field(default=1, ge=1)
    """in_context only. Seeded orders of the demonstrations whose probabilities are averaged."""
    calibration: Literal["none", "contextual", "pmi", "batch"] = "none"
    """in_context, and batch also for the teacher of distill. contextual: divide by the mean over
    content-free inputs; pmi: divide by the probability after the line without text, instruction
    and demonstrations; batch: subtract the mean log-probability over training texts (up to
    `data.max_validation`, labels unseen)."""
    length_normalization: bool = False
    """in_context only. Divide the log-probability of a label word by its number of tokens."""
    loss: Literal["labels", "vocabulary", "branches"] | None = None
    """label_words and distill only. labels: over the probabilities of the task's label words;
    vocabulary: over the whole vocabulary (as in the published recipe); branches (label_words only):
    at each branch of the tree of label words over the tokens that may follow, in training and in
    prediction. For words of one token that is the same as labels; for many labels of several tokens
    it is far cheaper. None: branches for label_words, labels for distill."""
    start: Literal["auto", "zero", "probe", "words"] = "auto"
    """head only. Where the linear head starts: zero: undecided; probe: a logistic regression on the
    model's features before training (Kumar et al. 2022, arXiv:2202.10054), made less sure; words:
    the LM head's rows of the label words; auto: probe for fewer than 200 training texts, which it
    helps, else zero."""
    blend: list[str] | None = Field(default=None, max_length=2)
    """Classifiers. Average the probabilities with those of probes on these features: `model` (its
    last hidden state before training, behind the same prompt), or encoders (`minilm`, a hub id, a
    folder); weights from held-out texts where there are enough, else equal. None: no blending,
    except that `method.name=auto` takes [model, minilm]."""
    class_weights: Literal["none", "balanced"] = "none"
    """Trained classifiers. balanced: an example counts in inverse proportion to how frequent its
    class is in training; the mean weight is 1."""
    focal_gamma: float = Field(default=0.0, ge=0)
    """Trained classifiers. Exponent of the focal loss, which gives examples that are right already
    less weight; 0: plain cross-entropy."""
    sampling: Literal["all", "balanced"] = "all"
    """Trained classifiers. all: every example once an epoch; balanced: as many draws an epoch, each
    class equally often, with replacement."""
    prompt: bool = True
    """head, probe and knn only. Put the text into the task's prompt; false: the text alone."""
    decoding: Literal["exact", "greedy", "free"] = "exact"
    """label_text only. exact: the label whose text is most probable; greedy: token by token along
    the tree of labels; free: generate anything and parse it, which may give no answer."""
    max_new_tokens: int = Field(default=16, ge=1)
    """label_text with decoding=free, and remote: most tokens of an answer (tokens)."""
    teacher: Literal["frozen", "self"] = "frozen"
    """distill only. frozen: the model before training; self: the student itself, with context."""
    contexts: Literal["fixed", "redrawn"] = "fixed"
    """distill only. Demonstrations of the teacher: the same all along, or drawn anew each step."""
    student_instruction: bool = False
    """distill only. Let the student keep the task's instruction; it never has demonstrations."""
    temperature: float = Field(default=1.0, gt=0)
    """distill only. Divides the scores of teacher and student before the softmax."""
    num_neighbors: int = Field(default=8, ge=1)
    """knn only. Neighbours that vote, weighted by similarity."""
    encoder: str = "minilm"
    """encoder only. Which model: `minilm` (packaged), a hub id, or a folder."""

    @property
    def is_tuning(self) -> bool:
        """Return whether the method learns from rows of text, not from labels."""
        return self.name in TUNING

    @property
    def word_loss(self) -> Literal["labels", "vocabulary", "branches"]:
        """Return what the loss of label words is over, with the method's default filled in."""
        return self.loss or ("branches" if self.name == "label_words" else "labels")

    @property
    def reads_model(self) -> bool:
        """Return whether a causal language model must be loaded."""
        if self.name == "probe":
            return self.features in ("model", "both")
        if self.name == "knn":
            return self.retriever == "model"
        return self.name not in ("majority", "tfidf", "encoder", "remote")

    @property
    def shows_demonstrations(self) -> bool:
        """Return whether demonstrations stand in a prompt, and so are taken out of training."""
        if self.name in ("probe", "knn"):
            return self.prompt and self.reads_model
        if self.name == "head":
            return self.prompt
        return self.name not in ("majority", "tfidf", "encoder")
