"""`python -m temporal_vae` is the `temporal-vae` command."""

from temporal_vae.interrupts import handled


def main() -> None:
    """Run the command line and exit; signals are handled from here on, while it loads too."""
    with handled():
        from temporal_vae.cli import main as run

        run()


if __name__ == "__main__":
    main()
