"""Tiny random models of every supported architecture, tokenizers, and a learnable toy task."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from taskfit.data import Example
from taskfit.tasks import Label, Task, task_from_columns

NOUNS = ("dog", "cat", "bird", "teacher", "farmer", "child", "river", "train", "garden", "song")
PLACES = ("in the park", "near the lake", "at home", "by the road", "on the hill")
GOOD = ("lovely", "bright", "happy", "gentle", "warm")
BAD = ("awful", "gloomy", "sad", "rude", "cold")
CORPUS = [
    f"The {noun} was {word} {place}, and everybody said so: yes or no?"
    for noun in NOUNS
    for word in (*GOOD, *BAD)
    for place in PLACES
] + ["Text: good bad Label: mood label 0 1 2 (é ü 日本) positive negative Answer: maybe\n"] * 5


def toy_examples(count: int, *, offset: int = 0) -> list[Example]:
    """Sentences whose label hangs on one word; all distinct up to 500."""
    examples = []
    for i in range(offset, offset + count):
        good = i % 2 == 0
        word = (GOOD if good else BAD)[(i // 2) % 5]
        noun, place = NOUNS[(i // 10) % 10], PLACES[(i // 100) % 5]
        text = f"The {noun} was {word} {place}."
        examples.append(Example(f"toy:{i}", {"text": text}, "good" if good else "bad"))
    return examples


def toy_task(*, labels: Sequence[Label] | None = None, num_demonstrations: int = 0) -> Task:
    """Return the task of these sentences; its labels may have words of their own."""
    task = task_from_columns(
        name="toy", text=["text"], label_column="label", labels=["bad", "good"]
    )
    changes = {} if labels is None else {"labels": tuple(labels)}
    return replace(task, num_demonstrations=num_demonstrations, **changes)


def write_csv(path: Path, examples: list[Example]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*examples[0].texts, "label"])
        writer.writerows([*example.texts.values(), example.label] for example in examples)
    return path


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece style, with a start token in front as Llama 2 has it."""
    from tokenizers.processors import TemplateProcessing

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *byte_tokens],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_GROUPS = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
GEMMA = {**COMMON, "head_dim": 8, "query_pre_attn_scalar": 8}
ARCHITECTURES = {
    "llama": ("LlamaConfig", COMMON),
    "mistral": ("MistralConfig", {**COMMON, "sliding_window": None}),
    "mistral_window": ("MistralConfig", {**COMMON, "sliding_window": 4}),
    "qwen2": ("Qwen2Config", COMMON),
    "qwen2_window": (
        "Qwen2Config",
        {**COMMON, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**COMMON, "head_dim": 8}),
    "gemma": ("GemmaConfig", {**COMMON, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**GEMMA, "sliding_window": 4}),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "sliding_window": 4}),
    "phi": ("PhiConfig", COMMON),
    "phi3": ("Phi3Config", {**COMMON, "sliding_window": None}),
    "gpt2": (
        "GPT2Config",
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", NO_GROUPS),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 16,
        },
    ),
    "granite": ("GraniteConfig", {**COMMON, "logits_scaling": 3.0}),
    "cohere": ("CohereConfig", COMMON),
}
# Hybrids whose recurrent states fork under the tree.
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
HYBRIDS = {
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **COMMON,
            **LINEAR,
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "lfm2": ("Lfm2Config", {**COMMON, "layer_types": ["conv", "full_attention"]}),
    "falcon_h1": (
        "FalconH1Config",
        {
            **COMMON,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 8,
            "mamba_d_head": 4,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
    ),
}
# Models that the tree does not serve: a hybrid and recurrent ones whose states do not fork, and
# attention with biases.
PADDED = {
    "jamba": (
        "JambaConfig",
        {
            **COMMON,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {
            **COMMON,
            "num_hidden_layers": 3,
            "head_dim": 8,
            "attention_window_size": 64,
            "lru_width": 32,
        },
    ),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
}


def tiny_model(
    architecture: str, vocab_size: int, *, seed: int = 0, window: int | None = None
) -> PreTrainedModel:
    """A random model of two layers in float32, ready for scoring; windowed layers see 4 tokens."""
    config_class, settings = {**ARCHITECTURES, **HYBRIDS, **PADDED}[architecture]
    if window is not None and settings.get("sliding_window"):
        settings = {**settings, "sliding_window": window}
    config = getattr(transformers, config_class)(vocab_size=vocab_size, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            # Larger than the usual start, so that differences between tokens are worth testing.
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def save_encoder(folder: Path) -> Path:
    """Save a tiny BERT with its WordPiece tokenizer, as a user's local encoder."""
    tokenizer = wordpiece_tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
