"""Faust's frame around the engine: the only package that knows Faust's internals (pinned to 0.15.x, see its tests)."""
