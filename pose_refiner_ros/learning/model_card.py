# SPDX-License-Identifier: Apache-2.0
"""The page that comes with an encoder's weights: what it is, and how it was made."""

from __future__ import annotations

from pathlib import Path

from pose_refiner_ros.encoder.network import EncoderSettings
from pose_refiner_ros.files.atomic import write_atomically

HEADLINES = {
    "val_accuracy": "class accuracy",
    "val_mve_deg": "median viewpoint error of the likeliest hypothesis, degrees",
    "val_acc_pi_6": "likeliest hypothesis within 30 degrees, share",
    "val_best_mve_deg": "median viewpoint error of the better hypothesis, degrees",
    "val_best_acc_pi_6": "better hypothesis within 30 degrees, share",
}


def card_text(name: str, settings: EncoderSettings, record: dict) -> str:
    """The card as Markdown; record: as `train_encoder` returns it."""
    data = record.get("data", {})
    options = record.get("options", {})
    models = ", ".join(f"{n} {c}" for c, n in data.get("training_models", {}).items())
    lines = [
        f"# {name}",
        "",
        "From the mask of a vehicle to its class and pose hypotheses, for pose_refiner_ros.",
        "",
        f"- Classes: {', '.join(settings.classes)}.",
        f"- Network: {len(settings.channels)} convolutions of {settings.channels} channels, two "
        f"dense branches of {settings.dense}; input `{settings.input}`, window "
        f"`{settings.window}`, {settings.size}x{settings.size} pixels; pose head "
        f"`{settings.pose_head}`.",
        f"- Data: {data.get('source', 'not recorded')}; trained on {models or 'not recorded'}. "
        "Pictures are drawn during training; none is a photo.",
        f"- Training: {record.get('steps')} steps of {record.get('batch')} pictures "
        f"({record.get('samples', 0):,} in all) with Adam, learning rate "
        f"{options.get('learning_rate')}, seed {options.get('seed')}, {record.get('precision')}, "
        f"on {record.get('device')} ({record.get('threads')} threads), "
        f"{record.get('seconds', 0) / 60:.0f} minutes.",
        *([f"- {record['note']}"] if "note" in record else []),
        "",
        "| on models of the validation split, paper's camera, clean masks | |",
        "|---|---|",
    ]
    for key, value in record.get("validation", {}).items():
        lines.append(f"| {HEADLINES.get(key, key)} | {value:.3f} |")
    lines += [
        "",
        f"Made for vehicles that stand upright, {_views(settings)}. {_advice(settings)} Licence: "
        "Apache-2.0, as the code.",
        "",
    ]
    return "\n".join(lines)


def _views(settings: EncoderSettings) -> str:
    if settings.window == "image":
        return "seen by the camera that it was trained with and no other"
    return "seen from 0.5 to 3 m above their ground and 5 to 40 m away"


def _advice(settings: EncoderSettings) -> str:
    if settings.pose_head == "euler_cosine":
        return (
            "The head is the paper's: a cosine has no sign, so it cannot express about half of all "
            "directions. It is here for comparison."
        )
    return (
        "A mask alone does not always tell front from rear, nor size from distance: use the "
        "hypotheses' weights and covariances. The covariances are meant for rough and partly "
        "hidden masks as well; for clean ones they are too wide."
    )


def write_card(weights: Path, settings: EncoderSettings, record: dict) -> Path:
    """Write the card beside the weights; returns its path."""
    path = weights.with_suffix(".md")
    write_atomically(path, card_text(weights.name, settings, record).encode())
    return path
