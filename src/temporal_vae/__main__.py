"""`python -m temporal_vae` is the `temporal-vae` command."""

from temporal_vae.cli import main

main()
