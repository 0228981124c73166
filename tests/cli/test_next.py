"""`taskfit next`: what comes out, what is left out, what is refused, and that nothing is lost."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import tiny

MARKS = "abcdefghijklmnopqrstuvwxyz"


def write_pool(path: Path, count: int = 40, *, label: bool = False) -> Path:
    """Texts that differ, with a column of the user's."""
    rows = [
        {"text": f"{e.texts['text']} {MARKS[i % 26]}{i}", "ticket": str(i)}
        for i, e in enumerate(tiny.toy_examples(count, offset=300))
    ]
    table = pd.DataFrame(rows)
    if label:
        table.insert(1, "label", "")
    table.to_csv(path, index=False)
    return path


@pytest.fixture
def fitted(shell, encoder_folder: Path) -> Callable[..., tuple[int, str, str]]:
    """A run of TF-IDF, and `taskfit next` with it and a tiny encoder."""
    assert shell.fit("--method", "tfidf")[0] == 0
    write_pool(shell.folder / "pool.csv")

    def run(*extra: str, pool: str = "pool.csv", out: str = "to_label.csv"):
        given = ["next", "run", pool, "-o", out, "--features", str(encoder_folder), "--near", "1"]
        return shell(*given, *extra)

    return run


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, dtype=str)


def test_texts_come_out_with_all_columns_a_suggestion_and_an_empty_label(shell, fitted) -> None:
    code, out, err = fitted("-n", "10")
    assert code == 0, err
    found = read(shell.folder / "to_label.csv")
    ours = ["suggested", "probability", "why", "drawn"]
    assert list(found.columns) == ["text", "label", "ticket", *ours]
    assert len(found) == 10
    pool = read(shell.folder / "pool.csv").set_index("ticket")["text"]
    assert (found.set_index("ticket")["text"] == pool[found["ticket"]]).all()
    assert (found["label"] == "").all()
    assert (found["drawn"] == "random").sum() == 2
    assert set(found["why"]) == {"random", "uncertain"}
    predicted = shell("predict", "run", "pool.csv", "-o", "all.csv")
    assert predicted[0] == 0
    every = read(shell.folder / "all.csv").set_index("ticket")
    mine = found.set_index("ticket")
    assert (mine["suggested"] == every["predicted"][mine.index]).all()
    likeliest = every[["p_bad", "p_good"]].astype(float).max(axis=1)[mine.index]
    assert (mine["probability"].astype(float) - likeliest).abs().max() < 1e-4
    assert "10 texts to label: 8 by" in out
    assert "2 drawn at random" in out
    assert "taskfit fit to_label.csv --from run" in out
    assert not list(shell.folder.glob("*.partial"))


def test_uncertainty_puts_first_what_the_run_is_least_sure_of(shell, fitted) -> None:
    code, out, _ = fitted("-n", "40", "--features", "none", "--random-share", "0")
    assert (code, "40 by margin" in out) == (0, True)
    sure = read(shell.folder / "to_label.csv")["probability"].astype(float)
    assert sure.is_monotonic_increasing
    assert sure.iloc[0] < sure.iloc[-1]


def test_rows_that_need_no_label_are_left_out_and_counted(shell, fitted) -> None:
    pool = read(shell.folder / "pool.csv")
    known = tiny.toy_examples(60)[0].texts["text"]
    held_out = tiny.toy_examples(20, offset=100)[0].texts["text"]
    more = [known.upper(), held_out, "  ", pool["text"][0], "quite new"]
    pool = pd.concat([pool, pd.DataFrame({"text": more, "ticket": "x"})])
    pool["label"] = [*[""] * (len(pool) - 1), "good"]
    pool.to_csv(shell.folder / "mixed.csv", index=False)
    code, out, err = fitted("-n", "100", pool="mixed.csv")
    assert code == 0, err
    told = out.replace("\n", " ")
    assert "40 of 45 rows may be labelled" in told
    for part in ("1 without a text", "1 that repeat another row", "1 that have a label already"):
        assert part in told
    assert told.count("that the run has in its") == 2
    assert "no more: there are 40" in told
    found = read(shell.folder / "to_label.csv")
    assert len(found) == 40
    assert not set(found["text"]) & set(more[:3] + more[4:])


def test_filled_labels_feed_fit_and_those_left_empty_are_one_message(
    shell, fitted, refused: Callable[..., str]
) -> None:
    assert fitted("-n", "12", "--random-out", "random.csv", "--random-share", "0.5")[0] == 0
    chosen, drawn = (read(shell.folder / f"{name}.csv") for name in ("to_label", "random"))
    assert (len(chosen), len(drawn)) == (6, 6)
    assert set(drawn["drawn"]) == {"random"}
    assert set(chosen["drawn"]) == {"strategy"}
    for name, table in (("to_label", chosen), ("random", drawn)):
        table["label"] = ["good", "bad"] * 3
        table.to_csv(shell.folder / f"{name}.csv", index=False)
    go_on = ("fit", "to_label.csv", "--from", "run", "--test", "random=random.csv")
    code, out, err = shell(*go_on, "--out", "second")
    assert code == 0, err
    assert "new to run: 6 of the 6 rows of to_label.csv" in out
    record = json.loads((shell.folder / "second" / "result.json").read_text())
    assert "random" in record["evaluations"]
    chosen.loc[1, "label"] = ""
    chosen.to_csv(shell.folder / "to_label.csv", index=False)
    message = refused(*go_on, "--out", "third")
    assert "1 row (line 3) without a label in column 'label'" in message
    # What has been labelled meanwhile is not given again.
    code, out, _ = shell("next", "second", "pool.csv", "-o", "again.csv", "-n", "40",
                         "--strategy", "random")  # fmt: skip
    assert code == 0
    again = read(shell.folder / "again.csv")
    assert len(again) == 28
    assert not set(again["text"]) & {*chosen["text"], *drawn["text"]}


def test_without_a_run_there_is_a_beginning(shell, encoder_folder, refused) -> None:
    write_pool(shell.folder / "pool.csv", label=True)
    given = ("next", "pool.csv", "-n", "8", "--features", str(encoder_folder), "--near", "1")
    for strategy in ("typiclust", "k-center", "random"):
        out = f"{strategy}.csv"
        code, said, err = shell(*given, "-o", out, "--strategy", strategy)
        assert code == 0, err
        found = read(shell.folder / out)
        assert list(found.columns) == ["text", "label", "ticket", "why", "drawn"]
        assert len(found) == 8
        assert f"taskfit fit {out}" in said.replace("\n", " ")
    found["label"] = ["good", "bad"] * 4
    found.to_csv(shell.folder / "first.csv", index=False)
    code, _, err = shell("fit", "first.csv", "--method", "tfidf", "--out", "first")
    assert code == 0, err
    assert "typiclust" in refused(*given, "-o", "x.csv", "--strategy", "margin")
    assert "--balance" in refused(*given, "-o", "x.csv", "--strategy", "random", "--balance")


def test_the_same_seed_gives_the_same_file_and_another_one_another(shell, fitted) -> None:
    for out, seed in (("a.csv", "1"), ("b.csv", "1"), ("c.csv", "2")):
        assert fitted("-n", "10", "--seed", seed, out=out)[0] == 0
    a, b, c = ((shell.folder / f"{name}.csv").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_texts_given_to_others_are_not_given_again(shell, fitted) -> None:
    assert fitted("-n", "15", out="a.csv")[0] == 0
    assert fitted("-n", "40", "--without", "a.csv", out="b.csv")[0] == 0
    a, b = (set(read(shell.folder / f"{name}.csv")["text"]) for name in "ab")
    assert len(a) + len(b) == 40
    assert not a & b


def test_what_was_given_out_under_the_names_of_the_run_is_not_given_again(shell, fitted) -> None:
    pool = read(shell.folder / "pool.csv").rename(columns={"text": "body"})
    pool.to_csv(shell.folder / "pool.csv", index=False)
    named = ("--column", "text=body")
    assert fitted("-n", "15", *named, out="a.csv")[0] == 0
    code, _, err = fitted("-n", "40", *named, "--without", "a.csv", out="b.csv")
    assert code == 0, err
    a, b = (set(read(shell.folder / f"{name}.csv")["text"]) for name in "ab")
    assert (len(a), len(b), a & b) == (15, 25, set())


def test_a_copy_of_a_text_that_is_labelled_further_down_is_not_given(shell, fitted) -> None:
    pool = read(shell.folder / "pool.csv").assign(label="")
    labelled = pool.iloc[[3]].assign(label="good")
    pd.concat([pool, labelled]).to_csv(shell.folder / "pool.csv", index=False)
    code, out, _ = fitted("-n", "50", "--features", "none")
    assert (code, "39 of 41 rows may be labelled" in out) == (0, True)
    assert pool["text"][3] not in set(read(shell.folder / "to_label.csv")["text"])


def test_a_beginning_ends_in_a_command_that_fits_its_columns(shell) -> None:
    pool = read(write_pool(shell.folder / "pool.csv")).rename(columns={"text": "my letter"})
    pool[["my letter"]].to_csv(shell.folder / "letters.csv", index=False)
    given = ("next", "letters.csv", "-n", "8", "--features", "none", "--label", "queue")
    code, out, err = shell(*given, "-o", "first.csv")
    assert code == 0, err
    found = read(shell.folder / "first.csv").assign(queue=["good", "bad"] * 4)
    found.to_csv(shell.folder / "first.csv", index=False)
    command = out.partition("then taskfit ")[2].strip()
    assert command == "fit first.csv --text 'my letter' --label queue"
    code, _, err = shell(*shlex.split(command), "--method", "tfidf", "--out", "first")
    assert code == 0, err


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
def test_every_format_holds_the_same(shell, fitted, ending: str) -> None:
    assert fitted("-n", "5")[0] == 0
    assert fitted("-n", "5", out=f"other.{ending}")[0] == 0
    path = shell.folder / f"other.{ending}"
    table = {
        "tsv": lambda: pd.read_csv(path, sep="\t", keep_default_na=False),
        "jsonl": lambda: pd.read_json(path, lines=True),
        "parquet": lambda: pd.read_parquet(path),
    }[ending]()
    assert table["text"].tolist() == read(shell.folder / "to_label.csv")["text"].tolist()


def test_a_column_that_is_called_like_one_of_ours_stands_under_another_name(shell, fitted) -> None:
    pool = read(shell.folder / "pool.csv").rename(columns={"ticket": "why"})
    pool.to_csv(shell.folder / "pool.csv", index=False)
    assert fitted("-n", "5")[0] == 0
    found = read(shell.folder / "to_label.csv")
    assert set(found["text_why"]) <= set(pool["why"])
    assert set(found["why"]) <= {"random", "uncertain"}


def test_nothing_is_written_over_and_what_cannot_be_is_one_message(
    shell, fitted, refused: Callable[..., str]
) -> None:
    before = (shell.folder / "pool.csv").read_bytes()
    assert fitted("-n", "5")[0] == 0
    code, _, err = fitted("-n", "5")
    assert (code, "may hold labels by now" in err) == (2, True)
    assert fitted("-n", "5", "--overwrite")[0] == 0
    for extra in ((), ("--overwrite",)):
        code, _, err = fitted("-n", "5", *extra, out="pool.csv")
        assert (code, "would be written over" in err, "--overwrite" in err) == (2, True, False)
    assert (shell.folder / "pool.csv").read_bytes() == before
    code, _, err = fitted("-n", "5", "--near", "1e-6", "--random-share", "0", out="x.csv")
    assert (code, "near duplicates of labelled ones" in err) == (2, True)
    given = ("next", "run", "pool.csv", "-o", "x.csv")
    assert "at least 1" in refused(*given, "-n", "0")
    assert "give one of random" in refused(*given, "--strategy", "nearest")
    assert "from 0 to 1" in refused(*given, "--random-share", "2")
    compares = ("--strategy", "badge", "--features", "none")
    assert "--features none is for" in refused(*given, *compares)
    assert "two files" in refused(*given, "--random-out", "x.csv")
    assert "would be empty" in refused(*given, "-n", "2", "--random-out", "y.csv")
    assert "from 0 on" in refused(*given, "--seed", "-1")
    assert "above 0" in refused(*given, "--near", "nan")
    begin = ("next", "pool.csv", "-o", "x.csv", "--features", "none", "--text", "text")
    assert "a column of their own" in refused(*begin, "--label", "text")
    assert "no column 'txet'" in refused(*begin[:-1], "txet")
    assert "--column" in refused(*given, "--text", "body")
    assert "stands behind it" in refused("next", "pool.csv", "run", "-o", "x.csv")
    assert "stands behind it" in refused("next", "run", "-o", "x.csv")
    assert "give a run and one file" in refused("next", "run", "pool.csv", "b.csv", "-o", "x.csv")
    assert ".jsonl" in refused("next", "run", "pool.csv", "-o", "x.docx")
    plain = ("--features", "none", "--strategy", "margin")
    message = refused("next", "run", "train.csv", "-o", "x.csv", *plain)
    assert "train.csv: no row is left to label" in message
    assert not (shell.folder / "x.csv").exists()


def test_a_stopped_command_goes_on_from_its_predictions(
    shell, fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fitted("-n", "10", out="whole.csv")[0] == 0

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("taskfit.labels.next.choose_next", stop)
        code, _, err = fitted("-n", "10")
    assert code == 130
    assert "Safe in to_label.csv.partial: 1 finished part" in err
    scored = []
    monkeypatch.setattr(
        "taskfit.runs.predictor.Predictor.answer", lambda *_: scored.append(1), raising=True
    )
    code, out, err = fitted("-n", "10")
    assert code == 0, err
    assert not scored
    assert "going on from" in out + err
    files = [(shell.folder / name).read_bytes() for name in ("to_label.csv", "whole.csv")]
    assert files[0] == files[1]


def test_runs_of_several_questions_and_of_several_labels_are_served(
    shell, runs: dict[str, Path], encoder_folder: Path, refused: Callable[..., str]
) -> None:
    given = ("--features", str(encoder_folder), "--near", "1", "-n", "6")
    write_pool(shell.folder / "pool.csv")
    code, out, err = shell("next", str(runs["several"]), "pool.csv", "-o", "q.csv", *given)
    assert code == 0, err
    found = read(shell.folder / "q.csv")
    assert {"mood", "outside", "suggested_mood", "probability_stars"} <= set(found.columns)
    assert "suggested for mood" in out
    message = refused("next", str(runs["several"]), "pool.csv", "-o", "x.csv", *given, "--balance")
    assert "one question" in message
    topics = [
        {"text": e.texts["text"], "topics": "a|b" if i % 3 else "b"}
        for i, e in enumerate(tiny.toy_examples(30))
    ]
    pd.DataFrame(topics).to_csv(shell.folder / "topics.csv", index=False)
    fit = ("fit", "topics.csv", "--label", "topics", "--method", "tfidf", "--out", "several")
    code, _, err = shell(*fit, "--set", "task.multi_label=true")
    assert code == 0, err
    for strategy in ("margin", "badge", "entropy"):
        out_file = f"{strategy}.csv"
        code, _, err = shell("next", "several", "pool.csv", "-o", out_file, *given,
                             "--strategy", strategy)  # fmt: skip
        assert code == 0, err
        assert "topics" in read(shell.folder / out_file).columns
