"""Contenders of `peers.py` made of Transformers, PEFT and TRL, as their documentation shows.

Both load the weights in bfloat16, as taskfit does on this kind of processor, and run under
autocast; what is trained stays in float32. Test texts are sorted by length, so that batches have
little padding.
"""

import math
from typing import Any

import numpy as np

from peer_data import Clock, FloatArray, Outcome, PeerData, PeerOptions, by_length, log_softmax

EVALUATION_BATCH = 32


def training_arguments(data: PeerData, options: PeerOptions) -> dict[str, Any]:
    """Return the arguments that `TrainingArguments` and `SFTConfig` share."""
    steps = options.epochs * math.ceil(len(data.train) / options.batch_size)
    steps = min(steps, options.max_steps or steps)
    return {
        "output_dir": options.scratch,
        "max_steps": options.max_steps or -1,
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": EVALUATION_BATCH,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": round(0.1 * steps),
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        # Autocast: products with the adapters, whose weights are in float32, run in bfloat16 too.
        "bf16": True,
        "use_cpu": True,
        "seed": options.seed,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
    }


def lora(options: PeerOptions, task_type: str) -> Any:  # noqa: ANN401 - PEFT has no types
    """Return the adapters' shape, the same as taskfit's default."""
    from peft import LoraConfig

    return LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
        task_type=task_type,
    )


def run_classifier(
    data: PeerData, options: PeerOptions, clock: Clock, *, prompt: bool = False
) -> Outcome:
    """Train `AutoModelForSequenceClassification` with `Trainer`, batches padded to their longest.

    Args:
        data: What to learn and to predict.
        options: Shared options.
        clock: Measures.
        prompt: Read the text in the task's prompt, not alone.
    """
    with clock.measure("load"):
        import torch
        from datasets import Dataset
        from peft import get_peft_model
        from transformers import (
            AutoModelForSequenceClassification,
            AutoTokenizer,
            DataCollatorWithPadding,
            Trainer,
            TrainingArguments,
        )

        torch.manual_seed(options.seed)
        tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="right")
        model = AutoModelForSequenceClassification.from_pretrained(
            options.model, num_labels=len(data.labels), dtype=torch.bfloat16
        )
        model.config.pad_token_id = tokenizer.pad_token_id

    def rows(found: Any) -> Any:  # noqa: ANN401
        texts = found.prompts if prompt else found.texts
        encoded = tokenizer(texts, truncation=True, max_length=1024)
        return Dataset.from_dict({**encoded, "labels": found.gold})

    arguments = training_arguments(data, options)
    with clock.measure("training"):
        model = get_peft_model(model, lora(options, "SEQ_CLS"))
        for parameter in model.parameters():
            if parameter.requires_grad:  # PEFT casts adapters, but not the new head
                parameter.data = parameter.data.float()
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**arguments),
            train_dataset=rows(data.train),
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
        )
        trainer.train()
    probabilities = {}
    for name, test in data.tests.items():
        with clock.measure("evaluation"):
            order = by_length(test.texts)
            scores = np.empty((len(test), len(data.labels)))
            scores[order] = trainer.predict(rows(test).select(order)).predictions
            probabilities[name] = np.exp(log_softmax(scores))
    formats = {name: str(p.dtype) for name, p in model.named_parameters() if p.requires_grad}
    return Outcome(
        probabilities,
        {
            "weights": "bfloat16",
            "trained": sorted(set(formats.values())),
            "input": "prompt" if prompt else "text",
            "padding": "right, to the longest of the batch",
            "arguments": {k: v for k, v in arguments.items() if k != "output_dir"},
        },
    )


def run_sft(data: PeerData, options: PeerOptions, clock: Clock) -> Outcome:
    """Train with TRL's `SFTTrainer` on prompt and label text; predict the most probable label.

    The loss is on the completion only, which is TRL's default for rows of prompt and completion.
    """
    with clock.measure("load"):
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    arguments = training_arguments(data, options)
    with clock.measure("training"):
        rows = [
            {"prompt": prompt, "completion": data.words[gold]}
            for prompt, gold in zip(data.train.prompts, data.train.gold, strict=True)
        ]
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**arguments, completion_only_loss=True, max_length=1024),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora(options, "CAUSAL_LM"),
        )
        trainer.train()
    probabilities = {}
    for name, test in data.tests.items():
        with clock.measure("evaluation"):
            probabilities[name] = label_probabilities(
                trainer.model, tokenizer, test.prompts, data.words
            )
    return Outcome(
        probabilities,
        {
            "weights": "bfloat16",
            "trained": sorted(
                {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}
            ),
            "input": "prompt without demonstrations, label as completion with end of text",
            "prediction": "greedy text, likelihoods where it is no label; labels of one token by "
            "likelihoods alone",
            "arguments": {k: v for k, v in arguments.items() if k != "output_dir"},
        },
    )


def label_probabilities(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    prompts: list[str],
    words: list[str],
) -> FloatArray:
    """Return p(word | prompt), (N, L), by the fastest way that loses no quality.

    Words of one token are read off one forward pass. Longer ones would be a row each; generating
    the label is what people do then. A text that is no label is settled by the likelihoods.
    """
    longest = max(map(len, tokenizer(words, add_special_tokens=False)["input_ids"]))
    if longest == 1:
        return np.exp(log_softmax(label_log_likelihoods(model, tokenizer, prompts, words)))
    place = {word.strip(): index for index, word in enumerate(words)}
    found = np.zeros((len(prompts), len(words)))
    other = []
    for index, text in enumerate(generated(model, tokenizer, prompts, longest + 1)):
        if text in place:
            found[index, place[text]] = 1.0
        else:
            other.append(index)
    if other:
        scores = label_log_likelihoods(model, tokenizer, [prompts[i] for i in other], words)
        found[other] = np.exp(log_softmax(scores))
    return found


def generated(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    prompts: list[str],
    max_new_tokens: int,
) -> list[str]:
    """Return the greedy continuation of every prompt, stripped; prompts are padded on the left."""
    import torch

    order, texts = by_length(prompts), [""] * len(prompts)
    model.eval()
    for begin in range(0, len(order), EVALUATION_BATCH):
        chunk = order[begin : begin + EVALUATION_BATCH]
        inputs = tokenizer(
            [prompts[i] for i in chunk],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        answers = ids[:, inputs["input_ids"].shape[1] :]
        decoded = tokenizer.batch_decode(answers, skip_special_tokens=True)
        for i, text in zip(chunk, decoded, strict=True):
            texts[i] = text.strip()
    return texts


def label_log_likelihoods(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    prompts: list[str],
    words: list[str],
) -> FloatArray:
    """Return log p(word | prompt) of every word after every prompt, (N, L).

    As evaluation harnesses do it: words of one token share the forward pass of their prompt, longer
    ones are a row each. Scores over the vocabulary are computed at the places of the word only.
    """
    endings = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    starts = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    scores = np.zeros((len(prompts), len(words)))
    single = all(len(ending) == 1 for ending in endings)
    rows = [(i, j) for i in range(len(starts)) for j in range(1 if single else len(endings))]
    rows.sort(key=lambda row: -len(starts[row[0]]) - len(endings[row[1]]))
    size = EVALUATION_BATCH if single else 2 * EVALUATION_BATCH
    model.eval()
    for begin in range(0, len(rows), size):
        chunk = rows[begin : begin + size]
        inputs = [starts[i] + endings[j][:-1] for i, j in chunk]
        places = [
            (row, len(starts[i]) - 1 + step)
            for row, (i, j) in enumerate(chunk)
            for step in range(len(endings[j]))
        ]
        found = log_probs_at(model, inputs, places)
        if single:
            first = np.array([ending[0] for ending in endings])
            scores[[i for i, _ in chunk]] = found[:, first]
            continue
        tokens = np.array([token for _, j in chunk for token in endings[j]])
        picked = found[np.arange(len(places)), tokens]
        for (row, _), value in zip(places, picked, strict=True):
            scores[chunk[row]] += value
    return scores


def log_probs_at(
    model: Any,  # noqa: ANN401
    inputs: list[list[int]],
    places: list[tuple[int, int]],
) -> FloatArray:
    """Return log-probabilities over the vocabulary at (row, token) places of inputs, (P, V)."""
    import torch

    longest = max(len(ids) for ids in inputs)
    ids = torch.zeros(len(inputs), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(inputs):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    causal = model.get_base_model()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        hidden = causal.model(input_ids=ids, attention_mask=mask, use_cache=False)
        rows, at = (torch.tensor(part) for part in zip(*places, strict=True))
        logits = causal.lm_head(hidden.last_hidden_state[rows, at])
        found: FloatArray = torch.log_softmax(logits.float(), dim=-1).numpy()
    return found
