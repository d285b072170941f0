"""Run a suite: `python scripts/run_sweep.py default` is `husai sweep default`, with the same flags."""

from husai.cli import main

if __name__ == "__main__":
    import sys

    main(["sweep", *sys.argv[1:]])
