"""Fixed sine-cosine positions (TubeViT, Eq 3-7) and their mirror image."""

import numpy as np
import pytest
import torch

import models
from models import positions
from pipeline.plan import Canvas, Plan, Tube


def one_tube(kernel, stride, offset=(0, 0, 0), size=(16, 48, 80)) -> Plan:
    canvas = Canvas(frames=size[0], height_px=size[1], width_px=size[2])
    return Plan(tubes=(Tube(name="tube", kernel=kernel, stride=stride, offset=offset, canvas=canvas),))


def test_equation_written_out():
    dim, (t, h, w) = 20, (3.5, 8.0, 40.0)
    row = positions.sincos_3d(np.array([[t, h, w]]), dim)[0]
    for j in range(3):
        omega = 10_000 ** (-j / 3)
        expected = [f(v * omega) for v in (t, w, h) for f in (np.sin, np.cos)]
        np.testing.assert_allclose(row[6 * j : 6 * j + 6], expected, atol=1e-6)
    assert torch.equal(row[18:], torch.zeros(2))


@pytest.mark.parametrize("dim", [192, 384, 768])
def test_row_norm(dim):
    rows = positions.sincos_3d(positions.centres(models.plan("tubevit-b16", size=(64, 96))), dim)
    np.testing.assert_allclose(rows.square().sum(1), dim / 2, rtol=1e-5)


@pytest.mark.parametrize(("dim", "zeros"), [(1024, 4), (1280, 2)])
def test_widths_that_six_does_not_divide(dim, zeros):
    plan = models.plan("tubevit-b16", size=(64, 96))
    rows = positions.sincos_3d(positions.centres(plan), dim)
    assert rows.shape == (plan.tokens, dim)
    assert rows.dtype == torch.float32
    assert torch.equal(rows[:, -zeros:], torch.zeros(plan.tokens, zeros))
    assert (rows[:, -zeros - 1] != 0).all()


def test_tubes_with_one_centre_share_their_position():
    small, large = one_tube((2, 4, 4), (4, 16, 16), (3, 6, 6)), one_tube((8, 16, 16), (4, 16, 16))
    a, b = positions.centres(small), positions.centres(large)
    assert torch.equal(positions.sincos_3d(a, 96), positions.sincos_3d(b, 96))


def test_non_square_grid_keeps_rows_and_columns_apart():
    plan = one_tube((1, 16, 16), (16, 16, 16))
    rows = positions.sincos_3d(positions.centres(plan), 96).reshape(1, 3, 5, 96)
    channel = torch.arange(96)
    across, down = rows[..., channel % 6 // 2 == 1], rows[..., channel % 6 // 2 == 2]
    assert torch.equal(across, across[:, :1].expand_as(across))  # x channels: the same in every row
    assert torch.equal(down, down[:, :, :1].expand_as(down))  # y channels: the same in every column
    assert len(torch.unique(rows.reshape(-1, 96), dim=0)) == 15


def test_mirrored_centres_are_where_the_flipped_pixels_are():
    plan = models.plan("tubevit-b16", frames=32, size=(64, 100))
    mirrored = positions.centres(plan, mirrored=True)
    start = 0
    for tube in plan.tubes:
        width, k_w = tube.canvas.width_px, tube.kernel[2]
        # Each pixel of the canvas holds the column it has once the clip is flipped.
        column = width - 1 - np.arange(width)
        tubes_nk = np.stack([column[w : w + k_w] for w in tube.origins[2]])
        flipped_nk = tubes_nk[::-1, ::-1]  # what the caller does to the tensors: n_w and kW
        assert (np.diff(flipped_nk, axis=1) == 1).all()
        seen = flipped_nk.mean(1) + 0.5
        grid = mirrored[start : start + tube.tokens].reshape(*tube.grid, 3)
        np.testing.assert_allclose(grid[..., 2], np.broadcast_to(seen, tube.grid))
        np.testing.assert_allclose(grid[..., :2], tube.centres[..., :2])
        start += tube.tokens


def test_a_dense_grid_is_its_own_mirror_image():
    plan = one_tube((1, 16, 16), (4, 16, 16))
    table = positions.table(plan, 96)
    torch.testing.assert_close(table[0], table[1])
    off_grid = positions.table(one_tube((4, 4, 4), (4, 32, 32), (0, 8, 8)), 96)
    assert (off_grid[0] - off_grid[1]).abs().max() > 0.1
