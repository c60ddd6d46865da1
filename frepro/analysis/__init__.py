"""What is asked of a model apart from its accuracy: cost here; spectra and similarities as the figures need them."""
