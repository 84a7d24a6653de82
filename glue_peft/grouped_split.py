"""Rows held out of the training set by groups: rows whose texts repeat or contain one another stay on one side.

SST-2's training rows are phrases of one another, MNLI's share premises, QNLI's and QQP's share questions: of rows that
are drawn one by one a model has read many in training. Texts are compared as words between spaces, upper and lower
case aside.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.model_selection import train_test_split

from glue_peft.record import Selection

# Shorter texts are found everywhere ("the film", "yes ."): they count as contained in none, and link no pairs.
LEAST_WORDS = 3
# Up to this share of rows with a text that another row has or contains, rows are drawn one by one.
MOST_NESTED = 0.02
# A group with more rows than this is not held out, and than a tenth of the held-out ones: it would decide the draw.
LARGEST_GROUP = 10


class TextIndex:
    """Texts, by their rarest word, in which others are looked up."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Index distinct texts of words with single spaces between them."""
        self.texts = sorted(set(texts), key=lambda text: (-text.count(" "), text))  # the longest first
        self.padded = [f" {text} " for text in self.texts]
        self.places: dict[str, list[int]] = defaultdict(list)
        for place, text in enumerate(self.texts):
            for word in set(text.split()):
                self.places[word].append(place)

    def containing(self, text: str) -> Iterable[str]:
        """Yield the texts that contain `text` as a whole, itself among them, the longest first."""
        padded = f" {text} "
        for place in min((self.places.get(word, []) for word in text.split()), key=len, default=[]):
            if len(self.padded[place]) >= len(padded) and padded in self.padded[place]:
                yield self.texts[place]


def draw(
    rows: Sequence[tuple[str, ...]], strata: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray, Selection]:
    """Split rows, given by their texts, into training and held-out ones; return their sorted numbers, and how.

    Both parts have the strata's shares, by groups as nearly as whole groups allow. Raises ValueError where there are
    too few rows.
    """
    numbers = np.arange(len(rows))
    train, held_out = train_test_split(numbers, test_size=fraction, random_state=seed, stratify=strata)
    rows = [tuple(" ".join(text.lower().split()) for text in texts) for texts in rows]
    links, nested = find_links(rows)
    grouping: dict[str, int | None] = dict.fromkeys(("groups", "largest_group", "rows_in_large_groups", "cut_links"))
    if nested > MOST_NESTED * len(rows):
        is_held_out, grouping = draw_groups(links, strata, Counter(strata[held_out].tolist()), seed)
        train, held_out = numbers[~is_held_out], numbers[is_held_out]
    contained, comparable = count_contained([rows[i] for i in held_out], [rows[i] for i in train])
    found: Selection = {
        "rows": len(held_out),
        "nested_rows": nested,
        **grouping,
        "contained_rows": contained,
        "comparable_rows": comparable,
    }
    return np.sort(train), np.sort(held_out), found


def find_links(rows: Sequence[tuple[str, ...]]) -> tuple[list[tuple[int, int]], int]:
    """Return pairs of rows that belong together, the surest first, and how many rows have a nested or repeated text.

    A text links the rows that have it, rare texts first, and then them with the longest text of another row that
    contains it, long texts first. Of rows of two texts each, those below LEAST_WORDS link none.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for number, texts in enumerate(rows):
        for text in dict.fromkeys(texts):
            rows_of[text].append(number)
    index = TextIndex(rows_of)
    repeats, containers, nested = [], [], set()
    for text, having in rows_of.items():
        words = text.count(" ") + 1
        if words < LEAST_WORDS and len(rows[having[0]]) > 1:
            continue
        others = (rows_of[longer] for longer in index.containing(text) if longer != text)
        container = next((other for other in others if not set(other) <= set(having)), None)
        if words >= LEAST_WORDS and (len(having) > 1 or container is not None):
            nested.update(having)
        repeats += [(len(having), having[0], other) for other in having[1:]]
        if container is not None:
            containers.append((-words, having[0], next(row for row in container if row not in having)))
    return [link[1:] for link in sorted(repeats) + sorted(containers)], len(nested)


def draw_groups(
    links: Sequence[tuple[int, int]], strata: np.ndarray, quotas: Counter, seed: int
) -> tuple[np.ndarray, dict[str, int | None]]:
    """Return which rows are held out, whole groups of linked rows, and what the groups are.

    Chains of shared texts may reach through most of the rows, as QQP's questions do. Groups that are too large to be
    held out stay in training; where they hold more than half of the rows, or the others can't fill nineteen twentieths
    of the quotas, links are cut until they can.
    """
    wanted = quotas.total()
    largest, most = max(LARGEST_GROUP, wanted // 10), len(strata)
    while True:
        groups, cut = join(links, len(strata), most)
        sizes = np.bincount(groups)
        large = int(sizes[sizes > largest].sum())
        is_held_out = fill(groups, sizes <= largest, strata, quotas, seed)
        if (large <= len(strata) / 2 and is_held_out.sum() >= 0.95 * wanted) or most == 1:
            break
        most = largest if most == len(strata) else most // 2
    return is_held_out, {
        "groups": len(sizes), "largest_group": int(sizes.max()), "rows_in_large_groups": large, "cut_links": cut,
    }  # fmt: skip


def join(links: Iterable[tuple[int, int]], rows: int, most: int) -> tuple[np.ndarray, int]:
    """Return the group of each row, numbered from 0, and how many links were cut.

    Links are followed in turn; one that would make a group of more than `most` rows is cut.
    """
    parent, size = list(range(rows)), [1] * rows
    cut = 0

    def root(row: int) -> int:
        """Return the row that stands for a row's group."""
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for left, right in links:
        left, right = root(left), root(right)
        if left == right:
            continue
        if size[left] + size[right] > most:
            cut += 1
            continue
        if size[left] < size[right]:
            left, right = right, left
        parent[right] = left
        size[left] += size[right]
    return np.unique([root(row) for row in range(rows)], return_inverse=True)[1], cut


def fill(groups: np.ndarray, may_go: np.ndarray, strata: np.ndarray, quotas: Counter, seed: int) -> np.ndarray:
    """Return which rows are held out: those of groups that may go, in a random order, while all strata have room."""
    members: list[Counter] = [Counter() for _ in may_go]
    for group, stratum in zip(groups.tolist(), strata.tolist(), strict=True):
        members[group][stratum] += 1
    left = Counter(quotas)
    is_taken = np.zeros(len(members), dtype=bool)
    for group in np.random.default_rng(seed).permutation(len(members)):
        if may_go[group] and members[group] <= left:
            is_taken[group] = True
            left -= members[group]
    return is_taken[groups]


def count_contained(held_out: Sequence[tuple[str, ...]], train: Sequence[tuple[str, ...]]) -> tuple[int, int]:
    """Count the held-out rows with a text of LEAST_WORDS that a training row's text contains, and those with any."""
    index = TextIndex(text for texts in train for text in texts)
    contained = comparable = 0
    for texts in held_out:
        long = [text for text in texts if text.count(" ") + 1 >= LEAST_WORDS]
        comparable += bool(long)
        contained += any(next(iter(index.containing(text)), None) is not None for text in long)
    return contained, comparable
