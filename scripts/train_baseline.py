"""Another name for `train_transformer.py`, with the same flags."""

import typer
from train_transformer import main

if __name__ == "__main__":
    typer.run(main)
