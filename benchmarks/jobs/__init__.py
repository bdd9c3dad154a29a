"""Pipelines that exist to be measured; the ones that people run are in `pipelines/`."""
