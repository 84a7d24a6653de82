"""grouped_split.py: rows whose texts repeat or contain one another are held out together, or not at all."""

import random

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from glue_peft.grouped_split import draw

Rows = list[tuple[str, ...]]


def split(rows: Rows, fraction: float = 0.1, seed: int = 1, labels: np.ndarray | None = None):
    """Draw from rows of two labels in turn."""
    strata = np.arange(len(rows)) % 2 if labels is None else labels
    return draw(rows, strata, fraction, seed)


def contained(rows: Rows, held_out: np.ndarray, train: np.ndarray) -> float:
    """Return the share of held-out rows with a text of three words or more inside a training row, by brute force."""
    texts = [f" {text.lower()} " for i in train for text in rows[i]]
    long = [[text for text in rows[i] if len(text.split()) > 2] for i in held_out]
    long = [texts for texts in long if texts]
    return np.mean([any(f" {text.lower()} " in other for text in row for other in texts) for row in long])


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return texts of ten words that share none of three words."""
    words = iter(random.Random(seed).sample(range(10 * count), 10 * count))
    return [" ".join(f"w{next(words)}" for _ in range(10)) for _ in range(count)]


def phrases(count: int) -> Rows:
    """Return rows as SST-2's: each sentence, and seven pieces of it."""
    rng = random.Random(1)
    rows = []
    for sentence in sentences(count):
        words = sentence.split()
        rows.append((sentence.title(),))
        for _ in range(7):
            start, length = rng.randrange(8), rng.randint(1, 8)
            rows.append((" ".join(words[start : start + length]),))
    return rows


def test_phrases_go_with_their_sentence():
    """Most of a plain draw's rows lie in training rows; of groups none; numbers and labels are the plain draw's."""
    rows = phrases(200)
    labels = np.arange(len(rows)) % 3 // 2
    plain = train_test_split(np.arange(len(rows)), test_size=0.1, random_state=1, stratify=labels)
    assert contained(rows, plain[1], plain[0]) > 0.75
    train, held_out, found = split(rows, labels=labels)
    assert contained(rows, held_out, train) == 0 == found["contained_rows"]
    assert {number // 8 for number in held_out}.isdisjoint(number // 8 for number in train)
    assert np.array_equal(np.bincount(labels[held_out]), np.bincount(labels[plain[1]]))
    assert sorted([*train, *held_out]) == list(range(len(rows))) and list(held_out) == sorted(held_out)
    assert (found["rows"], found["groups"], found["cut_links"]) == (160, 200, 0)


def test_the_longest_row_that_contains_a_phrase_counts():
    """A phrase in two sentences goes with the longer one, which leaves it inside the other: that is counted."""
    rows = [(text,) for text in sentences(400)]
    for i in range(0, 400, 2):
        shared = rows[i][0].split()[:3]
        rows[i] = (" ".join([*rows[i][0].split(), "longer"]),)
        rows[i + 1] = (" ".join([*rows[i + 1][0].split(), *shared]) if i < 40 else rows[i + 1][0],)
        rows.append((" ".join(shared),))
    train, held_out, found = split(rows, 0.3)
    for i in range(200):
        assert (400 + i in held_out) == ((2 * i + 1 if i < 20 else 2 * i) in held_out)
    assert found["contained_rows"] == round(contained(rows, held_out, train) * found["comparable_rows"]) > 0


def test_pairs_that_share_a_text_stay_together():
    """QNLI's question with several sentences, a sentence with several questions; two words in common mean nothing."""
    texts = sentences(1000)
    rows = [(texts[i // 4], texts[500 + i // 2] if i % 2 else f"yes {texts[i][:2]}") for i in range(400)]
    train, held_out, found = split(rows)
    assert {i // 4 for i in held_out}.isdisjoint(i // 4 for i in train)
    assert (len(held_out), found["groups"], found["largest_group"], found["contained_rows"]) == (40, 100, 4, 0)


def test_without_nesting_the_draw_is_the_plain_one():
    """To the bit, with up to 2 % of the rows nested; with more it is by groups."""
    rows = [(text,) for text in sentences(970)] + [("Two words",)] * 10
    for more, is_plain in ((20, True), (21, False)):
        nested = rows + [(" ".join(rows[i][0].split()[2:6]),) for i in range(more)]
        labels = np.arange(len(nested)) % 2
        plain = train_test_split(np.arange(len(nested)), test_size=0.1, random_state=7, stratify=labels)
        train, held_out, found = split(nested, seed=7)
        assert found["nested_rows"] == more
        equal = np.array_equal(train, np.sort(plain[0])) and np.array_equal(held_out, np.sort(plain[1]))
        assert equal == (found["groups"] is None) == is_plain


def test_the_seed_decides():
    """The same seed holds out the same rows."""
    rows = phrases(100)
    draws = [split(rows, seed=seed)[1] for seed in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


@pytest.mark.parametrize(("chained", "cut"), [(300, False), (900, True)])
def test_a_chain_of_shared_texts_swallows_nothing(chained, cut):
    """Below half of the rows it stays in training; above, it is cut, and what is left of it is counted."""
    texts = sentences(3000)
    rows = [(texts[i], texts[i + 1]) if i < chained else (texts[2 * i], texts[2 * i + 1]) for i in range(1000)]
    train, held_out, found = split(rows)
    assert len(held_out) == 100
    if not cut:
        assert found["rows_in_large_groups"] == found["largest_group"] == 300 and held_out.min() >= 300
        assert found["contained_rows"] == found["cut_links"] == 0
    else:
        assert found["rows_in_large_groups"] == 0 < found["cut_links"] and found["largest_group"] == 10
        assert held_out.min() < 300
        assert 0 < found["contained_rows"] == round(100 * contained(rows, held_out, train)) <= 25


def test_groups_that_cannot_fill_the_share_are_cut():
    """Two texts, eight times each: four rows are held out all the same."""
    rows = [("a rather dull film",), ("a rather great film",)] * 8
    train, held_out, found = split(rows, 0.25)
    assert len(held_out) == 4 and len(train) == 12 and found["cut_links"]
    assert found["contained_rows"] == found["comparable_rows"] == 4
