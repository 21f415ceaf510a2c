"""Scoring over HTTP: `python -m service` serves a page for people, and an interface for programs."""
