"""Settings of the MIL heads: one small model a kind, checked where the user gives them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class HeadSettings(BaseModel):
    """What every head has; `mean-linear`, `max-linear` and `linear` have no more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, description="of the start weights and of the dropout that the head draws by itself")


class AttentionSettings(HeadSettings):
    """Gated attention over hidden tile vectors (ABMIL)."""

    hidden: int = Field(512, ge=1, description="width of the hidden tile vectors and of the bag vector")
    attention: int = Field(384, ge=1, description="width of the attention network")
    gated: bool = Field(True, description="tanh times sigmoid; tanh alone without")
    dropout: float = Field(0.25, ge=0, lt=1, description="on hidden tile vectors")
    attention_dropout: float | None = Field(
        None, ge=0, lt=1, description="inside the attention network; as dropout if not given"
    )


class AbmilSettings(AttentionSettings):
    """ABMIL; with `activation` none, `mlp` (128, 64) and 128 wide throughout it is the head of kaiko's eva."""

    activation: Literal["relu", "none"] = Field("relu", description="of the hidden tile vectors")
    mlp: tuple[int, ...] = Field((), description="widths of ReLU layers between the bag vector and the logits")


class ClamSettings(AttentionSettings):
    """CLAM (Lu et al. 2021). `size` sets the attention width: 256 small, 384 big, unless `attention` is given."""

    size: Literal["small", "big"] = "small"
    attention: int = Field(0, ge=0, description="width of the attention network; 0 = that of `size`")
    k: int = Field(8, ge=1, description="most and least attended tiles in the instance loss, at most the bag's tiles")
    instance_loss: Literal["svm", "ce"] = "svm"
    svm_margin: float = Field(1.0, ge=0)
    svm_temperature: float = Field(1.0, gt=0)
    subtyping: bool = Field(False, description="tiles attended for a class are negatives of every other class")
    bag_weight: float = Field(0.7, ge=0, le=1, description="the instance loss has 1 minus this")
    task_weights: dict[str, float] = Field({}, description="weight of a task's instance loss; 1 if not given")

    @property
    def attention_width(self) -> int:
        """Width of the attention network."""
        return self.attention or {"small": 256, "big": 384}[self.size]


class TransformerSettings(HeadSettings):
    """The transformer head: a Nyström layer over the bag, then a CLS token that attends to all of it."""

    hidden: int = Field(512, ge=1)
    heads: int = Field(8, ge=1)
    landmarks: int = Field(256, ge=1)
    pinv_steps: int = Field(6, ge=1, description="iterations of the pseudo-inverse")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the outputs of the attention layers")
