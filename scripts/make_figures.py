"""Draw a suite's figures and tables: `python scripts/make_figures.py results/default` is `husai report results/default`."""

from husai.cli import main

if __name__ == "__main__":
    import sys

    main(["report", *sys.argv[1:]])
