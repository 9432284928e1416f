"""Baselines without a network: models of scikit-learn on spectra."""
