"""GLUE's metrics of many runs on many draws of validation rows at once.

A draw is a line of `counts` [draws, rows]: how often it has each row. `labels` are [rows], and `given`, what the runs
answered, [rows, runs]: classes, or numbers for regression. Each score is [draws, runs], and what glue_peft.metric
gives for the rows of a draw written out.
"""

from collections.abc import Callable

import numpy as np

from glue_peft.tasks import TASKS

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def score_draws(task: str, metric: str, labels: np.ndarray, given: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the scores of a task's metric, such as combined_score, the mean of all that the task has."""
    names = TASKS[task].metrics if metric == "combined_score" else (metric,)
    scores: np.ndarray = np.mean([METRICS[name](labels, given, counts) for name in names], axis=0)
    return scores


def accuracy(labels: np.ndarray, given: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the shares of right answers."""
    shares: np.ndarray = counts @ (given == labels[:, None]).astype(counts.dtype) / counts.sum(axis=1, keepdims=True)
    return shares


def f1(labels: np.ndarray, given: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return class 1's F1, 2 TP / (2 TP + FP + FN); 0 where there is none of it."""
    both, label, answer = confusion(labels, given, counts)
    return ratio(2 * both, label + answer)


def matthews(labels: np.ndarray, given: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Matthews' correlation of two classes; 0 where either side is constant."""
    both, label, answer = confusion(labels, given, counts)
    n = counts.sum(axis=1, keepdims=True)
    return ratio(n * both - label * answer, np.sqrt(label * (n - label) * answer * (n - answer)))


def confusion(labels: np.ndarray, given: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how often class 1 is both label and answer, is the label [draws, 1], and is the answer."""
    are, said = (labels == 1)[:, None], given == 1
    both, label, answer = (counts @ what.astype(counts.dtype) for what in (are & said, are, said))
    return both, label, answer


def pearson(labels: np.ndarray, given: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Pearson's correlations; 0 where either side is constant."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    x, y = standardised(labels)[:, None], standardised(given)
    mean_x, mean_y = shares @ x, shares @ y
    variances = (shares @ x**2 - mean_x**2) * (shares @ y**2 - mean_y**2)
    return ratio(shares @ (x * y) - mean_x * mean_y, np.sqrt(np.maximum(variances, 0)))


def mean_squared_error(labels: np.ndarray, given: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return hundredths of the mean squared errors, as the tables have them."""
    errors: np.ndarray = counts @ (given - labels[:, None]) ** 2 / counts.sum(axis=1, keepdims=True)
    return errors / 100


def standardised(values: np.ndarray) -> np.ndarray:
    """Return columns with mean 0 and deviation 1, which loses no digits in sums of squares; constant ones as 0."""
    centred = values - values.mean(axis=0)
    return ratio(centred, np.broadcast_to(centred.std(axis=0), centred.shape), least=0.0)


def spearman(labels: np.ndarray, given: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Spearman's correlations, Pearson's of the ranks among the drawn rows; 0 where either side is constant."""
    n = counts.sum(axis=1)
    squared = ((n + 1) / 2) ** 2  # of the mean rank
    x, columns = ranks(labels, counts), []
    for answers in given.T:
        y = ranks(answers, counts)
        x_y, x_x, y_y = (np.einsum("dr,dr,dr->d", counts, *two) / n for two in ((x, y), (x, x), (y, y)))
        columns.append(ratio(x_y - squared, np.sqrt(np.maximum((x_x - squared) * (y_y - squared), 0))))
    return np.stack(columns, axis=1)


def ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the rank [draws, rows] of each of `values` [rows] in each draw, from 1; equal ones get their mean."""
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    of_group: np.ndarray = np.cumsum(sizes, axis=1) - sizes + (sizes + 1) / 2
    return of_group[:, group]


def ratio(above: np.ndarray, below: np.ndarray, least: float = 1e-12) -> np.ndarray:
    """Divide; what is divided by no more than `least` gives 0."""
    is_nothing = below <= least
    return np.where(is_nothing, 0.0, above / np.where(is_nothing, 1.0, below))


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews,
    "pearson": pearson,
    "spearmanr": spearman,
    "mse": mean_squared_error,
}
