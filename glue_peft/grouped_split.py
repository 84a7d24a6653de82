"""Rows held out of the training set by groups: rows whose texts repeat or contain one another stay on one side.

SST-2's training rows are phrases of one another, MNLI's share premises, QNLI's and QQP's share questions: of rows that
are drawn one by one a model has read many in training. Texts are compared as words between spaces, upper and lower
case aside.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

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
    """Texts, by their runs of up to LEAST_WORDS words, in which others are looked up."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Index distinct texts of words with single spaces between them."""
        self.texts = sorted(set(texts), key=lambda text: (-text.count(" "), text))  # the longest first
        self.padded = [f" {text} " for text in self.texts]
        self.numbers: dict[str, int] = {}
        for text in self.texts:
            for word in text.split():
                self.numbers.setdefault(word, len(self.numbers))
        self.runs: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # length -> runs in order, and each one's text
        words, owners = self.words_of(self.texts)
        for length in range(1, LEAST_WORDS + 1):
            runs, places = self.runs_of(words, owners, length)
            order = np.argsort(runs, kind="stable")
            self.runs[length] = runs[order], places[order]

    def words_of(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the words of all texts in turn, and each word's text, by position."""
        split = [text.split() for text in texts]
        unknown = len(self.numbers)
        words = [self.numbers.get(word, unknown) for words in split for word in words]
        return np.array(words, dtype=np.int64), np.repeat(np.arange(len(texts)), [len(words) for words in split])

    def runs_of(self, words: np.ndarray, owners: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return all runs of so many words, each as a number that no other run has, and each one's text."""
        count = max(0, len(words) - length + 1)
        runs = np.zeros(count, dtype=np.int64)
        for offset in range(length):
            runs = runs * (len(self.numbers) + 1) + words[offset : offset + count]
        within = owners[:count] == owners[length - 1 : length - 1 + count]
        return runs[within], owners[:count][within]

    def containing(self, texts: Iterable[str]) -> dict[str, Iterator[str]]:
        """Return for each text those that contain it as a whole, itself among them, the longest first."""
        by_length: dict[int, list[str]] = defaultdict(list)
        for text in texts:
            by_length[min(text.count(" ") + 1, LEAST_WORDS)].append(text)
        found = {}
        for length, of_length in by_length.items():
            wanted, owners = self.runs_of(*self.words_of(of_length), length)
            runs, places = self.runs[length]
            first, last = (runs.searchsorted(wanted, side) for side in ("left", "right"))
            starts = np.searchsorted(owners, np.arange(len(of_length)))
            # Each text's rarest run: the smallest number of texts that have it, and among equals the first run.
            rarest = np.minimum.reduceat((last - first) * len(wanted) + np.arange(len(wanted)), starts) % len(wanted)
            for text, run in zip(of_length, rarest.tolist(), strict=True):
                found[text] = self.matches(text, places[first[run] : last[run]])
        return found

    def matches(self, text: str, places: np.ndarray) -> Iterator[str]:
        """Yield those of the texts at `places` that contain a text."""
        padded = f" {text} "
        for place in dict.fromkeys(places.tolist()):
            if padded in self.padded[place]:
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
    links = {text: having for text, having in rows_of.items() if is_long(text) or len(rows[having[0]]) == 1}
    for text, containing in index.containing(links).items():
        having, words = links[text], text.count(" ") + 1
        others = (rows_of[longer] for longer in containing if longer != text)
        container = next((other for other in others if not set(other) <= set(having)), None)
        if is_long(text) and (len(having) > 1 or container is not None):
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
    long = [[text for text in texts if is_long(text)] for texts in held_out]
    containing = index.containing({text for texts in long for text in texts})
    is_inside = {text: next(found, None) is not None for text, found in containing.items()}
    return sum(any(is_inside[text] for text in texts) for texts in long), sum(bool(texts) for texts in long)


def is_long(text: str) -> bool:
    """Say whether a text has LEAST_WORDS."""
    return text.count(" ") + 1 >= LEAST_WORDS
