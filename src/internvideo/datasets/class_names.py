"""Classes of one set among the classes of another: Kinetics-400, 600 and 700 among the 710 (run_class_finetuning.py).

A name is found as it is, else as the only one with the same letters and digits (the rule by which Kinetics-710 was
merged), else a map file must say it. Nothing is guessed: every class is found, and no two become one.
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

SHOWN = 5
Named = str | int


@dataclass(frozen=True)
class ClassMatch:
    """Where classes are among others.

    Attributes:
        rows: index among the known classes, one for each wanted class, all different.
        known: how many known classes there are.
        respelled: wanted and known name where they differ and no map file says it.
        mapped: how many the map file says. map_sha256: of that file, "" without one.
    """

    rows: tuple[int, ...]
    known: int
    respelled: tuple[tuple[str, str], ...] = ()
    mapped: int = 0
    map_sha256: str = ""

    @property
    def about(self) -> str:
        """One line for a person."""
        parts = [f"{len(self.rows)} of {self.known} classes by name"]
        parts += [f"{self.mapped} of them by the map file {self.map_sha256[:16]}"] if self.map_sha256 else []
        if self.respelled:
            shown = ", ".join(f"'{wanted}' is '{known}'" for wanted, known in self.respelled[:SHOWN])
            more = f" and {len(self.respelled) - SHOWN} more" if len(self.respelled) > SHOWN else ""
            parts.append(f"{len(self.respelled)} spelled otherwise ({shown}{more})")
        return ", ".join(parts)


def same_name(name: str) -> str:
    """What two spellings of one class have in common: letters and digits, of any alphabet."""
    return re.sub(r"[\W_]+", " ", name.lower()).strip()


def only_count(names: Sequence[str]) -> bool:
    """Whether class names say nothing but their place, "0", "1", "2", ..., as of labels that are numbers."""
    return list(names) == [str(index) for index in range(len(names))]


def match_classes(
    wanted: Sequence[str], known: Sequence[str], *, where: object, class_map: Path | None = None
) -> ClassMatch:
    """Find classes among others.

    Args:
        wanted: names in their order, such as those of a manifest. known: those of a model.
        where: what asks, for messages.
        class_map: JSON object {class: known class}, a JSON list of the known classes in the order of `wanted`, or text
            lines `class<TAB>known class`. A class is a name or, in JSON, its index too, as in the released label maps.
            Classes that the file leaves out are found by name.

    Raises:
        ManifestError: a class that is not found, named; two that are one; a map file that cannot be used.
    """
    told = {} if class_map is None else _read_map(class_map, wanted, known)
    exact = {name: row for row, name in enumerate(known)}
    alike: dict[str, list[int]] = {}
    for row, name in enumerate(known):
        alike.setdefault(same_name(name), []).append(row)
    rows, respelled, lost = [], [], []
    for number, name in enumerate(wanted):
        near = alike.get(same_name(name), []) if same_name(name) else []
        if number in told:
            rows.append(told[number])
        elif name in exact:
            rows.append(exact[name])
        elif len(near) == 1:
            rows.append(near[0])
            respelled.append((name, known[near[0]]))
        else:
            lost.append(name)
    if lost:
        shown = ", ".join(f"'{name}'{did_you_mean(name, known)}" for name in lost[:SHOWN])
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        found = f"{len(lost)} of {len(wanted)} classes are not among the model's {len(known)}: {shown}{more}"
        raise ManifestError(where, found, "", "give a class map that names them")
    _check_different(wanted, known, rows, where)
    digest = "" if class_map is None else hashlib.sha256(untrusted.read_bytes(class_map)).hexdigest()
    return ClassMatch(tuple(rows), len(known), tuple(respelled), len(told), digest)


def _check_different(wanted: Sequence[str], known: Sequence[str], rows: Sequence[int], where: object) -> None:
    first: dict[int, str] = {}
    for name, row in zip(wanted, rows, strict=True):
        if row in first:
            raise ManifestError(where, f"'{first[row]}' and '{name}' are both '{known[row]}'", "different classes")
        first[row] = name


def _read_map(path: Path, wanted: Sequence[str], known: Sequence[str]) -> dict[int, int]:
    """Index among `wanted` -> index among `known`."""
    pairs = _json_pairs(path) if path.suffix == ".json" else _text_pairs(path)
    found: dict[int, int] = {}
    for place, one, other in pairs:
        if path.suffix == ".json" and isinstance(one, str) and one not in wanted and one.isdecimal():
            one = int(one)  # keys of JSON are texts
        number = _index(one, wanted, f"{place} class", "of the manifest")
        if number in found:
            raise ManifestError(f"{place} class", f"'{one}' a second time", "each class once")
        found[number] = _index(other, known, f"{place} known class", "of the model")
    return found


def _json_pairs(path: Path) -> list[tuple[str, Named, Named]]:
    try:
        tree = untrusted.read_json(path)
    except (OSError, ValueError) as error:
        raise ManifestError(path, f"cannot be read as JSON ({error})", "a class map") from error
    if isinstance(tree, list):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict) or not tree:
        raise ManifestError(path, "holds no class map", "{class: known class} or a list of known classes")
    for one, other in tree.items():
        if isinstance(other, bool) or not isinstance(other, str | int):
            raise ManifestError(f"{path} '{one}'", f"found {other!r}", "a class name or its index")
    return [(f"{path} '{one}'", one, other) for one, other in tree.items()]


def _text_pairs(path: Path) -> list[tuple[str, Named, Named]]:
    pairs: list[tuple[str, Named, Named]] = []
    for line, text in numbered_lines(path):
        parts = text.split("\t")
        if len(parts) != 2:
            raise ManifestError(f"{path}:{line}", f"found {len(parts)} columns", "class<TAB>known class")
        pairs.append((f"{path}:{line}", parts[0].strip(), parts[1].strip()))
    return pairs


def _index(name: Named, names: Sequence[str], where: str, of: str) -> int:
    """Of a class by its name, or by its index."""
    if isinstance(name, int):
        if 0 <= name < len(names):
            return name
        raise ManifestError(where, f"class {name}", f"0 to {len(names) - 1}, the classes {of}")
    if name in names:
        return names.index(name)
    raise ManifestError(where, f"unknown class '{name}'{did_you_mean(name, names)}", f"the {len(names)} classes {of}")
