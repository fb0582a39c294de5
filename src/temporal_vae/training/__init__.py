"""Training of the embedded model: sources, recipe, loop, export. `python -m temporal_vae.training --help`."""
