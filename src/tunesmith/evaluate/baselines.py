"""What a fine-tuned classifier has to beat: the commonest label, and a linear model over character n-grams.

    text ─▶ n-grams of 1 to 4 characters ─▶ tf-idf ─▶ logistic regression ─▶ label

The linear model learns from the same training rows in seconds on one core (scikit-learn), needs no tokenizer, and
works for any language. A large model that loses to it has learned nothing that needed a large model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluate.labels import judge
from tunesmith.evaluate.outcome import Outcome
from tunesmith.evaluate.scoring import Progress, silent

MAJORITY = "majority class"
LINEAR = "linear n-grams"
FEATURES = 1 << 18
LONGEST = 2000
"""Characters of a text that are looked at."""


def baselines(
    training: Sequence[tuple[str, str]],
    texts: Sequence[str],
    truth: NDArray[np.int64],
    labels: tuple[str, ...],
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Outcome]:
    """Both baselines by name, fitted on (text, label) pairs and measured on texts [rows]."""
    numbers = {label: number for number, label in enumerate(labels)}
    common = Counter(label for _, label in training).most_common()
    top = min((label for label, count in common if count == common[0][1]), key=lambda label: numbers[label])
    out = {MAJORITY: judge(np.full(len(truth), numbers[top]), truth, labels, seed)}
    if len(common) > 1:
        progress(LINEAR, 0, 1)
        out[LINEAR] = judge(Linear(training, numbers, seed).chosen(texts), truth, labels, seed)
        progress(LINEAR, 1, 1)
    return out


class Linear:
    """Logistic regression over the n-grams of (text, label) pairs, which learns when it is made."""

    def __init__(self, training: Sequence[tuple[str, str]], numbers: dict[str, int], seed: int = 0) -> None:
        from sklearn.linear_model import SGDClassifier
        from sklearn.pipeline import make_pipeline

        classifier = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=50, random_state=seed, average=True)
        self._model: Any = make_pipeline(*_features(), classifier)
        self._model.fit(_looked_at([text for text, _ in training]), [numbers[label] for _, label in training])

    def chosen(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The number of the label of each text [rows]."""
        return np.asarray(self._model.predict(_looked_at(texts)), dtype=np.int64)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """How likely each label is for each text [rows, labels seen while learning, in the order of their numbers]."""
        return np.asarray(self._model.predict_proba(_looked_at(texts)), dtype=np.float64)


def _looked_at(texts: Sequence[str]) -> list[str]:
    return [text[:LONGEST] for text in texts]


def _features() -> list[Any]:
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    plain_counts: Any = {"norm": None, "alternate_sign": False}
    ngrams = HashingVectorizer(analyzer="char", ngram_range=(1, 4), n_features=FEATURES, **plain_counts)
    return [ngrams, TfidfTransformer(sublinear_tf=True)]
