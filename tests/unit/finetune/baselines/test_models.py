"""Baselines of scikit-learn: every model learns every form of labels, from a seed alone."""

import numpy as np
import pytest

from finetune.baselines.registry import BASELINES, DEFAULT, require_library
from finetune.tasks.kinds.kind import Form
from shards.errors import ConfigError

models = pytest.importorskip("finetune.baselines.models", reason="needs scikit-learn", exc_type=ImportError)

CLASSES, BANDS, COUNT = 3, 12, 90
SMALL = {"random_forest": {"trees": 10}, "extra_trees": {"trees": 10}, "svm": {"landmarks": 30}}


def _samples(form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Noisy mixtures of spectra, and votes that say what is in them."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(CLASSES, 0.3), COUNT).astype(np.float32)
    spectra = shares @ rng.normal(size=(CLASSES, BANDS)) + 0.02 * rng.normal(size=(COUNT, BANDS))
    votes = {
        "class": np.eye(CLASSES)[shares.argmax(1)],
        "classes": shares > 0.3,
        "value": 20 + 5 * shares,
    }[form]
    return spectra.astype(np.float32), votes.astype(np.float32)


def _fit(name: str, form: Form, seed: int = 0, **options: object) -> list:
    config = BASELINES.validate({"name": name, **SMALL.get(name, {}), **options})
    return models.fit_candidates(config, form, *_samples(form), seed)


@pytest.mark.parametrize("form", ["class", "classes", "value"])
@pytest.mark.parametrize("name", ["linear", "random_forest", "extra_trees", "svm"])
def test_every_model_learns_every_form_of_labels_and_repeats_itself(name, form):
    spectra, votes = _samples(form)
    candidates = _fit(name, form, pca=4)
    predicted = [model.votes(spectra) for model in candidates]
    assert all(one.shape == votes.shape and one.dtype == np.float32 for one in predicted)
    wrong = {
        "class": lambda one: (one.argmax(1) != votes.argmax(1)).mean(),
        "classes": lambda one: ((one > 0.5) != votes).mean(),
        "value": lambda one: np.abs(one - votes).mean() / 5,
    }[form]
    assert min(map(wrong, predicted)) < 0.1
    for again, before in zip(_fit(name, form, pca=4), predicted, strict=True):
        np.testing.assert_allclose(again.votes(spectra), before, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "svm"])
def test_classes_that_never_or_always_occur_have_their_constant_probability(name):
    spectra, votes = _samples("classes")
    votes[:, 0], votes[:, 1] = 0, 1
    config = BASELINES.validate({"name": name, **SMALL.get(name, {})})
    for model in models.fit_candidates(config, "classes", spectra, votes, 0):
        predicted = model.votes(spectra)
        assert (predicted[:, 0] == 0).all()
        assert (predicted[:, 1] == 1).all()
    single = np.eye(CLASSES, dtype=np.float32)[np.ones(COUNT, int)]
    assert (models.fit_candidates(config, "class", spectra, single, 0)[0].votes(spectra) == single).all()


def test_the_default_is_each_model_with_and_without_principal_components():
    assert [one.label for one in DEFAULT] == [
        *("linear", "random_forest", "extra_trees", "svm"),
        *("linear pca=10", "random_forest pca=10", "extra_trees pca=10", "svm pca=10"),
    ]


def test_a_missing_scikit_learn_is_one_line(monkeypatch):
    monkeypatch.setattr("finetune.baselines.registry.library_version", lambda: None)
    with pytest.raises(ConfigError, match=r"baseline needs scikit-learn: pip install 'spectralforge\[baselines\]'"):
        require_library()
