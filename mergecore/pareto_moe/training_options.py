"""How routers are trained, as a config says it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TrainingOptions(BaseModel):
    """How routers are trained; the defaults are the paper's for CLIP. GPT-2: batches of 8, a weight decay."""

    model_config = ConfigDict(extra="forbid")

    scalarisation: str = Field("ls", description="ls (linear scalarisation), epo (exact Pareto optimal search), mgda.")
    steps: int = Field(4000, ge=1)
    batch_size: int = Field(16, ge=1, description="Labelled examples of each task a step.")
    micro_batch: int | None = Field(
        None, ge=1, description="So many of them in one pass, their gradients added up; default: all."
    )
    learning_rate: float = Field(1e-2, gt=0, description="Of Adam; falls to a tenth on a cosine.")
    weight_decay: float = Field(0.0, ge=0, description="Above zero it is AdamW's.")
    concentration: float = Field(1.0, gt=0, description="Of the Dirichlet distribution that preferences come from.")
    preferences_per_step: int = Field(1, ge=1, description="More make the gradient less noisy.")
    checkpoint_activations: bool = Field(False, description="Compute activations twice instead of keeping them.")
    save_every: int = Field(100, ge=1, description="Steps between two checkpoints of the training.")
