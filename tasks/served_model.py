"""The code of a saved MLflow model, which MLflow copies beside it and runs where it is loaded (models from code)."""

from pathlib import Path

from tasks.serving import declare_model

declare_model(Path(__file__).parent)
