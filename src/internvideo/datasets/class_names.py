"""Match the classes of a data set to those of a model, such as Kinetics-400 to Kinetics-710 (run_class_finetuning.py).

A class in the map file matches its entry. Any other class matches the identical name, or else the only name with the
same letters and digits (as in the merging of Kinetics-710). All classes must match, each a different one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from internvideo import untrusted
from internvideo.data.sample import did_you_mean
from internvideo.datasets.reading import numbered_lines
from internvideo.errors import ManifestError

NUM_EXAMPLES = 5
NameOrIndex = str | int


@dataclass(frozen=True)
class ClassMatch:
    """The result of `match_classes`.

    Attributes:
        rows: for each wanted class the index of a known class, all different.
        num_known: number of known classes.
        respelled: (wanted, known) names that are equal only in letters and digits.
        num_mapped: number of classes matched by the map file. map_sha256: hash of that file, "" without one.
    """

    rows: tuple[int, ...]
    num_known: int
    respelled: tuple[tuple[str, str], ...] = ()
    num_mapped: int = 0
    map_sha256: str = ""

    @property
    def description(self) -> str:
        """One line that describes the match."""
        parts = [f"{len(self.rows)} of {self.num_known} classes by name"]
        parts += [f"{self.num_mapped} of them by the map file {self.map_sha256[:16]}"] if self.map_sha256 else []
        if self.respelled:
            shown = ", ".join(f"'{wanted}' is '{known}'" for wanted, known in self.respelled[:NUM_EXAMPLES])
            more = f" and {len(self.respelled) - NUM_EXAMPLES} more" if len(self.respelled) > NUM_EXAMPLES else ""
            parts.append(f"{len(self.respelled)} spelled differently ({shown}{more})")
        return ", ".join(parts)


def same_name(name: str) -> str:
    """Reduce a class name to its letters and digits, lower case, so that different spellings compare equal."""
    return re.sub(r"[\W_]+", " ", name.lower()).strip()


def are_indices(names: Sequence[str]) -> bool:
    """Return whether the class names are only "0", "1", "2", ..., as for data sets whose labels are numbers."""
    return list(names) == [str(index) for index in range(len(names))]


def match_classes(
    wanted: Sequence[str], known: Sequence[str], *, where: object, class_map: Path | None = None
) -> ClassMatch:
    """Find the index of every wanted class among the known classes.

    Args:
        wanted: class names in order, such as those of a manifest. known: class names, such as those of a model.
        where: start of error messages.
        class_map: JSON object {class: known class}, a JSON list of the known classes in the order of `wanted`, or text
            lines `class<TAB>known class`. A class is a name or, in JSON, also an index, as in the released label maps.
            Classes that the file does not list are matched by name.

    Raises ManifestError: classes without a match, two classes with the same match, a malformed map file.
    """
    mapped = {} if class_map is None else _read_map(class_map, wanted, known)
    row_of_name = {name: row for row, name in enumerate(known)}
    rows_by_spelling: dict[str, list[int]] = {}
    for row, name in enumerate(known):
        rows_by_spelling.setdefault(same_name(name), []).append(row)
    rows, respelled, unmatched = [], [], []
    for index, name in enumerate(wanted):
        candidates = rows_by_spelling.get(same_name(name), []) if same_name(name) else []
        if index in mapped:
            rows.append(mapped[index])
        elif name in row_of_name:
            rows.append(row_of_name[name])
        elif len(candidates) == 1:
            rows.append(candidates[0])
            respelled.append((name, known[candidates[0]]))
        else:
            unmatched.append(name)
    if unmatched:
        shown = ", ".join(f"'{name}'{did_you_mean(name, known)}" for name in unmatched[:NUM_EXAMPLES])
        more = f" and {len(unmatched) - NUM_EXAMPLES} more" if len(unmatched) > NUM_EXAMPLES else ""
        found = f"{len(unmatched)} of {len(wanted)} classes are not among the model's {len(known)}: {shown}{more}"
        raise ManifestError(where, found, "", "give a class map that names them")
    _check_different(wanted, known, rows, where)
    digest = "" if class_map is None else hashlib.sha256(untrusted.read_bytes(class_map)).hexdigest()
    return ClassMatch(tuple(rows), len(known), tuple(respelled), len(mapped), digest)


def _check_different(wanted: Sequence[str], known: Sequence[str], rows: Sequence[int], where: object) -> None:
    first: dict[int, str] = {}
    for name, row in zip(wanted, rows, strict=True):
        if row in first:
            raise ManifestError(where, f"'{first[row]}' and '{name}' are both '{known[row]}'", "different classes")
        first[row] = name


def _read_map(path: Path, wanted: Sequence[str], known: Sequence[str]) -> dict[int, int]:
    """Read a class map as index into `wanted` -> index into `known`."""
    pairs = _json_pairs(path) if path.suffix == ".json" else _text_pairs(path)
    mapped: dict[int, int] = {}
    for where, class_, known_class in pairs:
        if path.suffix == ".json" and isinstance(class_, str) and class_ not in wanted and class_.isdecimal():
            class_ = int(class_)  # keys of JSON are strings
        index = _index_of(class_, wanted, f"{where} class", "of the manifest")
        if index in mapped:
            raise ManifestError(f"{where} class", f"'{class_}' a second time", "each class once")
        mapped[index] = _index_of(known_class, known, f"{where} known class", "of the model")
    return mapped


def _json_pairs(path: Path) -> list[tuple[str, NameOrIndex, NameOrIndex]]:
    try:
        tree = untrusted.read_json(path)
    except (OSError, ValueError) as error:
        raise ManifestError(path, f"cannot be read as JSON ({error})", "a class map") from error
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict) or not tree:
        raise ManifestError(path, "holds no class map", "{class: known class} or a list of known classes")
    for class_, known_class in tree.items():
        if isinstance(known_class, bool) or not isinstance(known_class, str | int):
            raise ManifestError(f"{path} '{class_}'", f"found {known_class!r}", "a class name or its index")
    return [(f"{path} '{class_}'", class_, known_class) for class_, known_class in tree.items()]


def _text_pairs(path: Path) -> list[tuple[str, NameOrIndex, NameOrIndex]]:
    pairs: list[tuple[str, NameOrIndex, NameOrIndex]] = []
    for where, text in numbered_lines(path):
        parts = text.split("\t")
        if len(parts) != 2:
            raise ManifestError(where, f"found {len(parts)} columns", "class<TAB>known class")
        pairs.append((where, parts[0].strip(), parts[1].strip()))
    return pairs


def _index_of(name: NameOrIndex, names: Sequence[str], where: str, whose: str) -> int:
    """Return the index of a class given by name or by index. Raises ManifestError: there is no such class."""
    if isinstance(name, int):
        if 0 <= name < len(names):
            return name
        raise ManifestError(where, f"class {name}", f"0 to {len(names) - 1}, the classes {whose}")
    if name in names:
        return names.index(name)
    raise ManifestError(
        where, f"unknown class '{name}'{did_you_mean(name, names)}", f"the {len(names)} classes {whose}"
    )
