"""What the formats for plain ViTs ask of a run: a model of the family mae, with its sizes."""

from __future__ import annotations

from typing import Any

from frontier.errors import UserError
from frontier.models.mae_config import MAEConfig


def mae_sizes(config: dict[str, Any], format: str) -> MAEConfig:
    """The sizes of the model of a resolved config, no weights built.

    Raises:
        UserError: another family, or a gated MLP, which neither Hugging Face's ViT-MAE nor timm's ViT has.
    """
    from frontier.config.load import validate
    from frontier.models.registry import ImageShape

    family = config["model"]["family"]
    if family != "mae":
        raise UserError(
            f"a model of the family {family} does not fit --format {format}, which holds the ViTs of the family mae: "
            "use --format safetensors"
        )
    checked = validate(config)
    assert checked.data.image_size and checked.data.mean
    sizes = checked.model.maths(ImageShape(checked.data.image_size, len(checked.data.mean)))
    if sizes.encoder.mlp != "plain":
        raise UserError(
            f"the encoder has a {sizes.encoder.mlp} MLP, which --format {format} cannot express: use --format safetensors"
        )
    return sizes
