"""Video files and what is done with them: `reader`, `writer`, latent files in `latents`, all of it in `pipeline`."""
