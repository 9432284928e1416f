"""The registry of baselines, with their options. scikit-learn is imported when the first one is built."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, cast

from shards.config import NamedConfig
from shards.config.fields import Positive
from shards.errors import ConfigError
from shards.registry import Registry

SPECTRA = "spectra"
"""Name and architecture in results of what takes the place of an encoder."""

LIBRARY = "scikit-learn"


class BaselineModelConfig(NamedConfig):
    """Options of a baseline."""

    pca: Positive | None = None
    """Principal components of the spectra that the model gets; null for the spectra themselves."""

    @property
    def label(self) -> str:
        """The name, with the options that differ from their defaults."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


class ForestConfig(BaselineModelConfig):
    """Options of a forest."""

    trees: Positive = 200
    """Number of trees."""


class SvmConfig(BaselineModelConfig):
    """Options of a support vector machine with a Gaussian kernel, by Nystroem's approximation."""

    landmarks: Positive = 500
    """Number of training spectra that span the kernel's feature space."""


BASELINES: Registry[Any] = Registry("baseline", BaselineModelConfig)
"""Builders of baselines: called with a config, a `Form` and a seed, they return estimators of scikit-learn, the best of
which on the validation tiles is tested: classifiers, or regressors for the form ``value``."""

BASELINES.add("linear", "finetune.baselines.models:build_linear")
BASELINES.add("random_forest", "finetune.baselines.models:build_random_forest", ForestConfig)
BASELINES.add("extra_trees", "finetune.baselines.models:build_extra_trees", ForestConfig)
BASELINES.add("svm", "finetune.baselines.models:build_svm", SvmConfig)

BaselineChoice = Annotated[BaselineModelConfig, BASELINES]
"""Config value: the name of a baseline, or a mapping with its name and options."""

DEFAULT = tuple(
    cast(BaselineModelConfig, BASELINES.validate({"name": name, "pca": pca}))
    for pca in (None, 10)
    for name in ("linear", "random_forest", "extra_trees", "svm")
)
"""Each model, on spectra and on ten principal components."""


def library_version() -> str | None:
    """Return the version of scikit-learn; None if it isn't installed."""
    try:
        return version(LIBRARY)
    except PackageNotFoundError:
        return None


def require_library() -> None:
    """Raise ConfigError if scikit-learn is missing."""
    if library_version() is None:
        raise ConfigError(f"key 'protocol': baseline needs {LIBRARY}: pip install 'spectralforge[baselines]'")
