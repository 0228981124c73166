"""The script for GPUs, rehearsed in tiny shapes: its numbers are right, and it goes on."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu
from gpu_attention import pieces, tree_of
from taskfit.tree import TokenTree


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> gpu.Record:
    """All parts, run in this process."""
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    record = gpu.Record(path)
    record.values |= {"dry_run": True, "machine": {}}
    for name in gpu.PARTS:
        gpu.run_part(name, record, tiny=True)
    return gpu.Record(path)


# What peers call in transformers is on its way out there.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_every_measure_of_every_part_works_and_is_as_it_must_be(rehearsed: gpu.Record) -> None:
    assert gpu.troubles(rehearsed, list(gpu.PARTS)) == []
    tree = rehearsed.part("tree")["measures"]
    # The judge is float32, so that 16 bits must show, and the tree must show no more.
    assert tree["float32"]["scores_error"] < 1e-5 < tree["bfloat16"]["scores_error"] < 0.05
    assert tree["forked_states"]["engine"] == "TreeModel"
    assert tree["padded_engine"]["engine"] == "PaddedModel"
    assert tree["nf4"]["layers_in_4_bits"] == 21
    qlora = rehearsed.part("qlora")["measures"]
    first = {name: values["losses"][0] for name, values in qlora.items()}
    assert first["ours"] == pytest.approx(first["recipe"], abs=0.02)
    assert qlora["ours"]["tokens_per_step"] * 4 < qlora["recipe"]["tokens_per_step"]


def test_what_is_recorded_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def measures(bench: object) -> Iterator[tuple[str, object]]:
        def fails() -> dict[str, object]:
            calls.append("fails")
            raise RuntimeError("no kernel")

        yield "works", lambda: calls.append("works") or {"ok": True}
        yield "fails", fails
        yield "later", lambda: calls.append("later") or {"ok": False}

    monkeypatch.setitem(sys.modules, "gpu_tree", SimpleNamespace(measures=measures))
    for _ in range(2):
        record = gpu.Record(tmp_path / "gpu.json")
        record.values["machine"] = {}
        gpu.run_part("tree", record, tiny=True)
    assert calls == ["works", "fails", "later", "fails"]
    assert gpu.troubles(gpu.Record(tmp_path / "gpu.json"), ["tree"]) == [
        "tree fails: RuntimeError: no kernel",
        "tree later: not as it must be",
    ]


def test_parts_run_in_order_until_time_is_up_and_say_how_they_ended(tmp_path: Path) -> None:
    path, asked = tmp_path / "gpu.json", []

    def runner(name: str, path: Path, seconds: float) -> int:
        asked.append((name, seconds))
        return {"tree": 0, "qlora": -1, "attention": 3}[name]

    gpu.run_all(["tree", "qlora", "attention"], path, minutes=2.0, runner=runner)
    gpu.run_all(["scoring"], path, minutes=0.1, runner=runner)
    assert [name for name, _ in asked] == ["tree", "qlora", "attention"]
    assert all(seconds <= min(gpu.PARTS[name], 120) for name, seconds in asked)
    parts = json.loads(path.read_text())["parts"]
    assert {name: part["outcome"].split(" after")[0] for name, part in parts.items()} == {
        "tree": "done",
        "qlora": "stopped",
        "attention": "failed with code 3",
        "scoring": "no time left",
    }
    assert len(gpu.troubles(gpu.Record(path), list(gpu.PARTS))) == 3


def test_a_part_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    assert gpu.in_own_process("tree", tmp_path / "gpu.json", 0.2, tiny=True) == -1


@pytest.mark.parametrize("kind", ["shared", "packed", "chain", "branching"])
def test_pieces_cover_a_tree_and_see_exactly_what_its_mask_shows(kind: str) -> None:
    tree = tree_of("packed", 96)
    if kind == "branching":
        rows = [[1, 2, 3, 4], [1, 2, 3], [1, 2, 5, 6], [1, 7], [8, 9], [8]]
        tree = TokenTree.build(rows)
    elif kind != "packed":
        tree = tree_of(kind, 96)
    starts, keys, key_starts = pieces(tree)
    seen = np.zeros((len(tree), len(tree)), bool)
    for piece in range(len(starts) - 1):
        own = keys[key_starts[piece] : key_starts[piece + 1]]
        queries = np.arange(starts[piece], starts[piece + 1])
        for place, query in enumerate(queries):
            # Causal from the end.
            seen[query, own[: len(own) - len(queries) + place + 1]] = True
    key, query = np.arange(len(tree))[None, :], np.arange(len(tree))[:, None]
    assert np.array_equal(seen, (key <= query) & (query < tree.subtree_end[None, :]))
