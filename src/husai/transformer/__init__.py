"""The model under study: a tiny transformer, its training and its weights on disk."""
