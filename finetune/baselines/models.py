"""Models of scikit-learn on standardized spectra, or on their principal components.

A model has few candidates, of different regularization; the evaluation tests the one that is best on the validation
tiles.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from joblib import parallel_config
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC, LinearSVR
from threadpoolctl import threadpool_limits

from finetune.baselines.registry import BASELINES, BaselineModelConfig, ForestConfig, SvmConfig
from finetune.tasks.kinds.kind import Form

STRENGTHS = (0.01, 1.0, 100.0)
"""Inverse regularization C of the candidates of linear models and support vector machines."""

ITERATIONS = 300
"""Iterations after which a linear model that hasn't converged is taken as it is."""


def build_linear(config: BaselineModelConfig, form: Form, seed: int) -> list[Any]:
    """Build logistic regressions, or ridge regressions for values."""
    if form == "value":
        return [Ridge(alpha=1 / strength) for strength in STRENGTHS]
    return [LogisticRegression(C=strength, max_iter=ITERATIONS) for strength in STRENGTHS]


def build_random_forest(config: ForestConfig, form: Form, seed: int) -> list[Any]:
    """Build a random forest."""
    if form == "value":
        return [RandomForestRegressor(config.trees, max_features=1 / 3, random_state=seed)]
    return [RandomForestClassifier(config.trees, random_state=seed)]


def build_extra_trees(config: ForestConfig, form: Form, seed: int) -> list[Any]:
    """Build extremely randomized trees."""
    if form == "value":
        return [ExtraTreesRegressor(config.trees, max_features=1 / 3, random_state=seed)]
    return [ExtraTreesClassifier(config.trees, random_state=seed)]


def build_svm(config: SvmConfig, form: Form, seed: int) -> list[Any]:
    """Build support vector machines with the Gaussian kernel exp(-|x - y|^2 / features)."""
    found = []
    for strength in STRENGTHS:
        if form == "value":
            linear = LinearSVR(C=strength, loss="squared_epsilon_insensitive", dual=False, max_iter=ITERATIONS)
            machine = TransformedTargetRegressor(MultiOutputRegressor(linear), transformer=StandardScaler())
        else:
            machine = LinearSVC(C=strength, dual=False, max_iter=ITERATIONS)
        found.append(make_pipeline(Nystroem(n_components=config.landmarks, random_state=seed), machine))
    return found


class Baseline:
    """A fitted model.

    Args:
        estimator: an estimator of scikit-learn, which is cloned.
        spectra: float32 (n, F).
        votes: the labels as `TaskKind.votes` gives them, float32 (n, K).

    Attributes:
        has_probabilities: whether votes for classes are probabilities; an SVM has none.
    """

    def __init__(self, estimator: Any, form: Form, spectra: np.ndarray, votes: np.ndarray) -> None:
        self.form, self.outputs = form, votes.shape[1]
        if form == "class":
            self._parts = [_fit_classes(estimator, spectra, votes.argmax(1))]
        elif form == "classes":
            self._parts = [_fit_classes(estimator, spectra, column > 0.5) for column in votes.T]
        else:
            self._parts = [clone(estimator).fit(spectra, votes[:, 0] if self.outputs == 1 else votes)]
        self.has_probabilities = all(hasattr(part, "predict_proba") for part in self._parts)

    def votes(self, spectra: np.ndarray) -> np.ndarray:
        """Predict what spectra (n, F) vote for, float32 (n, K), as `TaskKind.from_votes` takes it."""
        if self.form == "class":
            return self._votes_for_classes(self._parts[0], spectra)
        if self.form == "classes":
            return np.stack([_probability(part, spectra) for part in self._parts], axis=1).astype(np.float32)
        return self._parts[0].predict(spectra).reshape(len(spectra), self.outputs).astype(np.float32)

    def _votes_for_classes(self, classifier: Any, spectra: np.ndarray) -> np.ndarray:
        if not self.has_probabilities:
            return np.eye(self.outputs, dtype=np.float32)[classifier.predict(spectra)]
        votes = np.zeros((len(spectra), self.outputs), np.float32)
        votes[:, classifier.classes_] = classifier.predict_proba(spectra)
        return votes


def fit_candidates(
    config: BaselineModelConfig, form: Form, spectra: np.ndarray, votes: np.ndarray, seed: int
) -> list[Baseline]:
    """Fit all candidates of a model.

    Args:
        spectra: float32 (n, F).
        votes: float32 (n, K), see `Baseline`.
    """
    steps: list[Any] = [StandardScaler()]
    if config.pca is not None:
        steps.append(PCA(min(config.pca, *spectra.shape), random_state=seed))
    estimators = [make_pipeline(*steps, built) for built in BASELINES[config.name](config, form, seed)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return [Baseline(estimator, form, spectra, votes) for estimator in estimators]


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let models fit and predict on some threads; their number changes no result."""
    with parallel_config("threading", n_jobs=count), threadpool_limits(count):
        yield


def _fit_classes(estimator: Any, spectra: np.ndarray, classes: np.ndarray) -> Any:
    """Fit a classifier; a constant one where there is a single class."""
    is_constant = (classes == classes[0]).all()
    return (DummyClassifier() if is_constant else clone(estimator)).fit(spectra, classes)


def _probability(classifier: Any, spectra: np.ndarray) -> np.ndarray:
    """Return the probability of True (n,): an SVM's by the sigmoid of its margin, which keeps order and decision."""
    if not hasattr(classifier, "predict_proba"):
        return 1 / (1 + np.exp(-classifier.decision_function(spectra)))
    column = np.flatnonzero(classifier.classes_)
    return classifier.predict_proba(spectra)[:, column[0]] if len(column) else np.zeros(len(spectra))
