"""Perplexity under named protocols, and lm-evaluation-harness's view of our models."""
