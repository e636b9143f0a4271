"""Thin stages: each loads, calls one function of mergecore, and saves or logs."""

from mergecore.checkpoints.checkpoint import SOURCES
from mergecore.patterns import FINDERS

# what a config may name that mergecore, which knows no MLflow, cannot open itself
SOURCES.add("models", "tasks.model_registry:model_folder")
FINDERS.add("models", "tasks.model_registry:find_models")
