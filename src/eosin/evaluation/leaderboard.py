"""Many results side by side: which rows may stand in one column, under which name each model goes, who is ahead.

Reads folders of `eosin eval` and `eosin mil train`. A block holds the rows of one protocol, which has a hash for each
kind of task, a column of it one task, metric and split; rows of different hashes never share a column, and a column
whose rows were judged on different samples under one name is refused. Differences, ranks and averages are computed
beside (`leaderboard_pairs`, `leaderboard_averages`). Nothing here is published by others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eosin.errors import DataError
from eosin.evaluation.leaderboard_names import display_names
from eosin.evaluation.leaderboard_pairs import Pair, Rank, column_pairs, ranks_of
from eosin.evaluation.leaderboard_rows import Row, chance_of, class_counts, classes_of, parts_of, read_rows
from eosin.evaluation.leaderboard_samples import Said, samples_of
from eosin.files import PathLike

Cells = dict[str, list[tuple[Path, Row]]]
"""Rows of one task by model name, with the file that each is from."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A cell: the result of one model. `said`: its predictions; None where there are none that can be compared.

    `more`: rows of further metrics of the same task.
    """

    model: str
    row: Row
    folder: Path
    said: Said | None
    more: tuple[Row, ...] = ()

    @property
    def mean(self) -> float:
        """The score."""
        return float(self.row["mean"])


@dataclass(eq=False)
class Column:
    """One task of a block. `entries` by model name, the best first; `pairs` of all of them; `ranks` by name."""

    task: str
    metric: str
    split: str
    entries: dict[str, Entry]
    pairs: list[Pair] = field(default_factory=list)
    ranks: dict[str, Rank] = field(default_factory=dict)
    title: str = ""

    @property
    def classes(self) -> list[str]:
        """Class names; empty for a task without."""
        return classes_of(next(iter(self.entries.values())).row)

    @property
    def n(self) -> int | None:
        """Samples judged."""
        count = next(iter(self.entries.values())).row.get("n")
        return count if isinstance(count, int) else None

    @property
    def parts(self) -> list[str]:
        """Names of what results have a score of its own for: classes, or the targets of a regression."""
        return parts_of(next(iter(self.entries.values())).row)

    @property
    def kind(self) -> str:
        """What kind of task it is, "" where results do not say."""
        return str(next(iter(self.entries.values())).row.get("kind") or "")

    @property
    def protocol_hash(self) -> str:
        """Of the protocol for tasks of this kind."""
        return str(next(iter(self.entries.values())).row.get("protocol_hash") or "")

    @property
    def chance(self) -> float | None:
        """What guessing gets; None where nobody knows, or results say different things."""
        told = {chance_of(entry.row) for entry in self.entries.values()}
        return told.pop() if len(told) == 1 else None


@dataclass(eq=False)
class Block:
    """Columns of one protocol, of one hash for each kind of task. `kind`: "eval" or "mil"; `protocol_hash`: all of its
    hashes; `title` tells blocks of one protocol name apart.
    """

    kind: str
    protocol: str
    protocol_hash: str
    columns: list[Column]
    title: str = ""

    @property
    def models(self) -> list[str]:
        """Names of its models: by mean rank where they have all columns, then the others by how many they have."""
        names = list(dict.fromkeys(name for column in self.columns for name in column.entries))

        def place(name: str) -> tuple[int, float]:
            own = [column.ranks[name].place for column in self.columns if name in column.ranks]
            return -len(own), sum(own) / max(len(own), 1)

        return sorted(names, key=place)


@dataclass(eq=False)
class Board:
    """Everything that was given. `models`: display name -> the word in results, in the order of reading."""

    models: dict[str, str]
    blocks: list[Block]
    folders: list[Path]

    def rows(self) -> Iterable[tuple[Block, Column, Entry]]:
        """All cells."""
        for block in self.blocks:
            for column in block.columns:
                for entry in column.entries.values():
                    yield block, column, entry

    def model_row(self, name: str) -> Row:
        """Any row of a model: what is the same in all of them."""
        return next(entry.row for _, _, entry in self.rows() if entry.model == name)


def read_board(results: Sequence[PathLike]) -> Board:
    """Read folders or results.json files into blocks and columns, with paired differences and ranks.

    NAME=PATH says what the model of a folder is called; folders of one name are of one model.

    Raises DataError, one line: nothing given, no or damaged results, a row without what is needed, one model twice with
    different scores in a column, or one task name for different samples.
    """
    if not results:
        raise DataError("no results given: name folders of `eosin eval` or `eosin mil train`")
    given: dict[Path, str] = {}
    files = list(dict.fromkeys(_results_file(path, given) for path in results))
    found = [(file, read_rows(file)) for file in files]
    for file, rows in found:
        if file in given and len({str(row["model"]) for row in rows}) > 1:
            raise DataError(f"{given[file]}={file.parent} holds several models; a name is for a folder with one")
    told = [(file, row) for file, rows in found for row in rows]
    names = display_names(told, given)
    groups: dict[tuple[str, str, str], dict[tuple[str, str], Cells]] = {}
    versions = _versions(row for _, row in told)
    for (file, row), name in zip(told, names, strict=True):
        cells = groups.setdefault((_kind(row), str(row["protocol"]), versions[_version(row)]), {})
        task = (str(row["task"]), str(row.get("split") or "test"))
        cells.setdefault(task, {}).setdefault(name, []).append((file, row))
    blocks = []
    for (kind, protocol, version), tasks in groups.items():
        columns = [column for (task, split), own in tasks.items() for column in _columns(task, split, own, kind)]
        if columns:
            blocks.append(Block(kind, protocol, version, columns))
    if not blocks:
        raise DataError(f"{files[0]} has no scores: every mean in it is empty")
    for block in blocks:
        _refuse_mixed(block)
        for column in block.columns:
            column.pairs = column_pairs(list(column.entries.values()), column.metric)
            column.ranks = ranks_of({name: entry.mean for name, entry in column.entries.items()}, column.pairs)
    _title(blocks)
    shown = {entry.model for block in blocks for column in block.columns for entry in column.entries.values()}
    words = {name: str(row["model"]) for (_, row), name in zip(told, names, strict=True) if name in shown}
    return Board(words, blocks, [file.parent for file in files])


def _results_file(word: PathLike, given: dict[Path, str]) -> Path:
    """The results.json that `word` means, PATH or NAME=PATH; the name goes into `given`."""
    path = Path(word)
    name, _, rest = str(word).partition("=")
    if rest and name and not path.exists():
        file = _results_file(rest, {})
        given[file] = name
        return file
    if path.is_dir():
        if not (path / "results.json").is_file():
            raise DataError(f"no results.json in {path}; give a folder that `eosin eval` or `eosin mil train` wrote")
        path = path / "results.json"
    elif not path.exists():
        raise DataError(f"no results at {path}: there is no such file or folder")
    return path.resolve()


def _kind(row: Row) -> str:
    return "mil" if row.get("head") else "eval"


def _version(row: Row) -> tuple[str, str, str]:
    return _kind(row), str(row["protocol"]), str(row["protocol_hash"])


def _versions(rows: Iterable[Row]) -> dict[tuple[str, str, str], str]:
    """The block that each protocol hash goes into: hashes of one protocol share it, one for each kind of task.

    Where a kind of task was judged by two hashes of one name, each hash has a block of its own.
    """
    hashes: dict[tuple[str, str], dict[str, set[str]]] = {}
    for row in rows:
        kinds = hashes.setdefault(_version(row)[:2], {})
        kinds.setdefault(str(row.get("kind") or "classification"), set()).add(str(row["protocol_hash"]))
    found: dict[tuple[str, str, str], str] = {}
    for (source, protocol), kinds in hashes.items():
        told = list(dict.fromkeys(one for own in kinds.values() for one in sorted(own)))
        apart = any(len(own) > 1 for own in kinds.values())
        found |= {(source, protocol, one): one if apart else " ".join(told) for one in told}
    return found


def _columns(task: str, split: str, cells: Cells, kind: str) -> list[Column]:
    """The column of a task, or several where folders put different metrics first."""
    mains: dict[str, dict[str, Entry]] = {}
    for name, rows in cells.items():
        metric = str(rows[0][1]["metric"])
        same = [(file, row) for file, row in rows if str(row["metric"]) == metric]
        file, row = same[0]
        for other, again in same[1:]:
            if (again["mean"], again.get("n")) != (row["mean"], row.get("n")):
                raise DataError(
                    f"task {task}: {name} has two scores by one protocol ({file}: {row['mean']}, {other}:"
                    f" {again['mean']}); give one of them"
                )
        if row["mean"] is None or not math.isfinite(row["mean"]):
            continue
        more = tuple(r for f, r in rows if f == file and str(r["metric"]) != metric)
        said = samples_of(file.parent, row, kind)
        mains.setdefault(metric, {})[name] = Entry(name, row, file.parent, said, more)
    columns = []
    for metric, entries in mains.items():
        best_first = sorted(entries, key=lambda name: entries[name].mean, reverse=True)
        columns.append(Column(task, metric, split, {name: entries[name] for name in best_first}))
    return columns


def _refuse_mixed(block: Block) -> None:
    """DataError where a column holds results on different samples or labels."""
    for column in block.columns:
        entries = list(column.entries.values())
        first = entries[0]
        for other in entries[1:]:
            if reason := _different(first, other):
                raise DataError(
                    f"task {column.task}: {first.folder} and {other.folder} judge different things under one name"
                    f" ({reason}); give them in different calls, or the tasks different names"
                )
    splits: dict[tuple[str, str], dict[str, Column]] = {}
    for column in block.columns:
        splits.setdefault((column.task, column.metric), {})[column.split] = column
    for (task, _), columns in splits.items():
        if len(columns) > 1 and any(split.endswith("-fold") for split in columns):
            folders = [next(iter(column.entries.values())).folder for column in columns.values()]
            raise DataError(
                f"task {task}: {folders[0]} and {folders[1]} judge different things under one name"
                f" ({' and '.join(columns)}); give them in different calls, or the tasks different names"
            )


def _different(first: Entry, other: Entry) -> str:
    """Why two results are not of one task; empty where nothing speaks against it."""
    a, b = first.row, other.row
    if a.get("n") is not None and b.get("n") is not None and a["n"] != b["n"]:
        return f"{a['n']} and {b['n']} samples"
    if classes_of(a) and classes_of(b) and classes_of(a) != classes_of(b):
        return f"classes {', '.join(classes_of(a))} and {', '.join(classes_of(b))}"
    counts = class_counts(a), class_counts(b)
    hashes = a.get("label_hash"), b.get("label_hash")
    if None not in counts and counts[0] != counts[1]:
        return "other numbers of samples a class"
    if None not in hashes and hashes[0] != hashes[1]:
        return "other labels, splits or patients"
    if first.said is not None and other.said is not None and first.said.other_labels(other.said):
        return "the same samples with other labels"
    return ""


def _title(blocks: Sequence[Block]) -> None:
    """Words for blocks and columns that no other shares."""
    for block in blocks:
        words = f"slide-level, {block.protocol}" if block.kind == "mil" else block.protocol
        same = [b for b in blocks if (b.kind, b.protocol) == (block.kind, block.protocol)]
        block.title = words if len(same) == 1 else f"{words} ({block.protocol_hash[:8]})"
        for column in block.columns:
            twins = [other for other in block.columns if other.task == column.task]
            parts = [column.task]
            parts += [column.split] if len({t.split for t in twins}) > 1 else []
            parts += [column.metric] if len({t.metric for t in twins}) > 1 else []
            column.title = " · ".join(parts)
