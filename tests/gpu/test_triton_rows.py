"""The GPU kernels against a float64 twin; needs CUDA (or TRITON_INTERPRET=1, which runs them on the CPU)."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from reference.gpu_rows_twin import twin_row

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="triton is not installed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (torch.cuda.is_available() or INTERPRETED):
    pytest.skip("no CUDA device", allow_module_level=True)

from quantvane.displacement.metrics import token_metrics  # noqa: E402
from quantvane.displacement.ops import triton_head, triton_rows  # noqa: E402
from quantvane.displacement.ops._triton_read import Done  # noqa: E402
from quantvane.errors import DataError  # noqa: E402
from quantvane.types import TOKEN_FIELDS  # noqa: E402

pytestmark = pytest.mark.gpu
DEVICE = "cpu" if INTERPRETED else "cuda"
# Float32 exponentials and sums: λ relative, the others over max(1, |value|). Entropy sums p·ln p.
TOLERANCE = {"entropy_ref": 3e-6, "entropy_cand": 3e-6}
if INTERPRETED:  # numpy rounds the exponents' products, which the device fuses
    TOLERANCE |= {"lambda_ref": 3e-6, "lambda_cand": 3e-6, "kld": 2e-6}
VOCABULARIES = (2, 3, 17, 101, 4099, 32003)


def draw(V: int, kind: str, rows: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng([V, len(kind)])
    a = rng.normal(0.0, 2.0, (rows, V))
    b = a + rng.normal(0.0, 0.2, (rows, V))
    if kind == "peaked":
        a[:, :: max(1, V // 30)] += rng.exponential(4.0, a[:, :: max(1, V // 30)].shape)
        b = a + rng.normal(0.0, 0.05, (rows, V))
    elif kind == "far":
        b = rng.normal(0.0, 3.0, (rows, V))
    elif kind == "ties":
        a, b = np.round(a), np.round(b)
    elif kind == "uniform":
        a[:], b[:3] = 1.5, -2.0
    elif kind == "one-hot":
        a[:, V // 2] += 60.0
        b[:, V // 2] += 50.0
    elif kind == "same lane":  # the two largest in columns that one lane folds together
        a[:, 1], b[:, 1] = 14.0, 13.9
        for lanes in (256, 512, 1024):
            if 1 + lanes < V:
                a[:, 1 + lanes], b[:, 1 + lanes] = 13.5, 13.6
    elif kind == "-inf":
        a[:, 0] = b[:, 0] = -np.inf
        if V > 3:
            b[0, V // 2] = -np.inf
            a[1, V - 1] = -np.inf
            a[2, : V - 1] = -np.inf
    return torch.tensor(a), torch.tensor(b), torch.tensor(rng.integers(0, V, rows))


def compare(
    out: dict[str, torch.Tensor], ref: torch.Tensor, cand: torch.Tensor, tokens: torch.Tensor, least: float = 1e-6
) -> None:
    twins = [
        twin_row(x, z, int(y), 10)
        for x, z, y in zip(
            ref.double().cpu().numpy(), cand.double().cpu().numpy(), tokens.cpu().numpy(), strict=True
        )
    ]
    for name, value in out.items():
        got = value.double().cpu().numpy()
        want = np.array([twin[name] for twin in twins])
        finite = np.isfinite(want)
        np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=name)
        scale = np.abs(want[finite]) if name.startswith("lambda") else np.maximum(1.0, np.abs(want[finite]))
        error = np.abs(got[finite] - want[finite]) / np.where(scale > 0, scale, 1.0)
        limit = np.full(error.shape, max(least, TOLERANCE.get(name, least)))
        if name.startswith("lambda"):  # float32 exponents of entries so far below the largest are rounded more
            limit[want[finite] < 1e-9] = 4e-6
        assert (error <= limit).all(), (name, error)


@pytest.mark.parametrize(
    "kind", ["plain", "peaked", "far", "ties", "uniform", "one-hot", "same lane", "-inf"]
)
@pytest.mark.parametrize("V", VOCABULARIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_equal_the_twin(V: int, kind: str, dtype: torch.dtype) -> None:
    if INTERPRETED and (V > 5000 or dtype == torch.float16):
        pytest.skip("slow in the interpreter")
    ref, cand, tokens = draw(V, kind)
    ref, cand, tokens = ref.to(DEVICE, dtype), cand.to(DEVICE, dtype), tokens.to(DEVICE)
    everything = triton_rows.rows_all(ref, cand, tokens, 10)
    assert set(everything) == set(TOKEN_FIELDS)
    compare(everything, ref, cand, tokens)
    peer = triton_rows.rows_peer(ref, cand, tokens)
    assert set(peer) == set(triton_rows.PEER_FIELDS)
    compare(peer, ref, cand, tokens)


def note_declined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows computed again, rows of which λ_max alone is) of every call from now on."""
    found: list[tuple[int, int]] = []
    complete = triton_rows.complete

    def noted(done: Done, *rest: object) -> None:
        found.append((int(done.queue[0]), int(done.unsure[0])))
        complete(done, *rest)

    monkeypatch.setattr(triton_rows, "complete", noted)
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("V", [4099, 32768])  # rows of bfloat16 that start at odd addresses, and at even ones
def test_rows_like_a_models_are_not_computed_again(
    V: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED and V > 5000:
        pytest.skip("slow in the interpreter")
    flagged = note_declined(monkeypatch)
    ref, cand, tokens = draw(V, "peaked")
    ref, cand, tokens = ref.to(DEVICE, dtype), cand.to(DEVICE, dtype), tokens.to(DEVICE)
    for out in (triton_rows.rows_all(ref, cand, tokens, 10), triton_rows.rows_peer(ref, cand, tokens)):
        compare(out, ref, cand, tokens, 2e-6)  # one of these peaks lies far above the guessed shift
    assert flagged == [(0, 0), (0, 0)]


@pytest.mark.parametrize("equal", [1, 7, 40])
def test_ties_about_the_last_place_cost_no_other_read(equal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More cells and columns than are ranked at once: nine clear winners, then ``equal`` for the tenth place."""
    flagged = note_declined(monkeypatch)
    V, n, rng = 4099, 1 if INTERPRETED else 4, np.random.default_rng(equal)
    rows = []
    for side in range(2):
        x = rng.normal(0.0, 1.0, (n, V))
        for i, row in enumerate(x):
            where = rng.permutation(V)[: 9 + equal]
            where[9:] = np.random.default_rng(i).permutation(V)[:equal]  # the same on both sides
            row[where[9:]] = 6.0
            row[where[:9]] = 7.0 + side + np.arange(9) / 4
        rows.append(torch.tensor(x).to(DEVICE, torch.bfloat16))
    tokens = torch.tensor(rng.integers(0, V, n)).to(DEVICE)
    got = triton_rows.rows_all(*rows, tokens, 10)["topk_overlap"].tolist()
    x, z = (side.double().cpu().numpy() for side in rows)
    want = [twin_row(a, b, int(t), 10)["topk_overlap"] for a, b, t in zip(x, z, tokens.tolist(), strict=True)]
    assert got == pytest.approx(want, abs=1e-12)
    assert min(want) > 0  # the tenth place is shared, by whoever of the equal comes first
    assert flagged == [(0, 0)]


@pytest.mark.parametrize("rows", [3, 40, 130])  # many parts a row, a few, one
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_second_largest_beside_the_largest_is_read_again(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one cell with the largest, the second is known by its moments alone; some rows hold it twice, or a tie."""
    if INTERPRETED and rows > 3:
        pytest.skip("slow in the interpreter")
    declined = note_declined(monkeypatch)
    V, rng = 32003, np.random.default_rng(rows)
    ref = rng.normal(0.0, 1.0, (rows, V))
    first = rng.integers(0, 4000, rows) * 8  # eight neighbours lie in one cell
    for i, (row, col) in enumerate(zip(ref, first, strict=True)):
        row[col], row[col + 1], row[col + 2] = 6.0, (5.9, 5.5, 6.0)[i % 3], (0.0, 5.5)[i % 2]
    cand = ref + rng.normal(0.0, 0.01, ref.shape)
    tokens = torch.tensor(rng.integers(0, V, rows)).to(DEVICE)
    a, b = torch.tensor(ref).to(DEVICE, dtype), torch.tensor(cand).to(DEVICE, dtype)
    some = slice(rows - 3, rows)
    for out in (triton_rows.rows_all(a, b, tokens), triton_rows.rows_peer(a, b, tokens)):
        compare({name: value[some] for name, value in out.items()}, a[some], b[some], tokens[some])
        assert all((out[name] > 0).all() for name in ("lambda_ref", "lambda_cand"))  # minus an estimate until then
    assert all(full == 0 and some > 0 for full, some in declined), declined


@pytest.mark.parametrize("kind", ["plain", "peaked", "ties", "uniform", "one-hot"])
def test_equal_rows_are_exactly_zero_apart(kind: str) -> None:
    ref, _, tokens = draw(4099, kind)
    ref, tokens = ref.to(DEVICE, torch.bfloat16), tokens.to(DEVICE)
    out = triton_rows.rows_all(ref, ref.clone(), tokens)
    for name in ("kld", "kld_rev", "jsd", "tv", "hellinger", "fisher_rao", "delta_p", "rank_in_cand"):
        assert not out[name].any(), name
    assert (out["topk_overlap"] == 1).all()
    assert out["same_top1"].all()
    assert not triton_rows.rows_peer(ref, ref.clone(), tokens)["kld"].any()


@pytest.mark.parametrize("top_k", [1, 26])
@pytest.mark.parametrize("kind", ["peaked", "ties", "same lane"])
def test_overlap_of_the_smallest_and_the_largest_sets(kind: str, top_k: int) -> None:
    ref, cand, tokens = draw(4099, kind, 2 if INTERPRETED else 6)
    ref, cand, tokens = ref.to(DEVICE, torch.bfloat16), cand.to(DEVICE, torch.bfloat16), tokens.to(DEVICE)
    got = triton_rows.rows_all(ref, cand, tokens, top_k)["topk_overlap"].tolist()
    x, z, y = ref.double().cpu().numpy(), cand.double().cpu().numpy(), tokens.cpu().numpy()
    want = [twin_row(a, b, int(t), top_k)["topk_overlap"] for a, b, t in zip(x, z, y, strict=True)]
    assert got == pytest.approx(want, abs=1e-12)


def test_a_row_with_nan_is_nan_and_leaves_its_neighbours() -> None:
    ref, cand, tokens = draw(101, "plain")
    ref[2, 5] = torch.nan
    cand[4, 100] = torch.inf
    ref, cand, tokens = ref.to(DEVICE, torch.float32), cand.to(DEVICE, torch.float32), tokens.to(DEVICE)
    out = triton_rows.rows_all(ref, cand, tokens)
    bad = torch.tensor([False, False, True, False, True, False], device=DEVICE)
    assert torch.equal(torch.isnan(out["kld"]), bad)
    assert torch.equal(out["top1_ref"] < 0, bad)
    good = ~bad
    compare({name: value[good] for name, value in out.items()}, ref[good], cand[good], tokens[good])


def test_row_stride_may_exceed_the_vocabulary() -> None:
    ref, cand, tokens = draw(101, "plain")
    wide = torch.full((6, 128), 99.0, dtype=torch.float32, device=DEVICE)
    wide[:, :101] = ref.to(DEVICE)
    cand, tokens = cand.to(DEVICE, torch.float32), tokens.to(DEVICE)
    compare(triton_rows.rows_all(wide[:, :101], cand, tokens), wide[:, :101], cand, tokens)


@pytest.mark.parametrize(("rows", "chunk"), [(64, 1024), (3, 2048)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_head_equals_rows_of_its_own_logits(rows: int, chunk: int, dtype: torch.dtype) -> None:
    gen = torch.Generator().manual_seed(3)
    h = torch.randn((7, 64), generator=gen)
    g = h + 0.05 * torch.randn((7, 64), generator=gen)
    weight = 0.4 * torch.randn((4099, 64), generator=gen)
    tokens = torch.randint(0, 4099, (7,), generator=gen).to(DEVICE)
    h, g, weight = (x.to(DEVICE, dtype) for x in (h, g, weight))
    out = triton_head.head_peer(h, g, triton_head.Heads(weight, weight), tokens, row_block=rows, chunk=chunk)
    x, z = h.double() @ weight.double().t(), g.double() @ weight.double().t()
    for i, twin in enumerate(
        twin_row(p, q, int(y), 10)
        for p, q, y in zip(x.cpu().numpy(), z.cpu().numpy(), tokens.cpu().numpy(), strict=True)
    ):
        for name in triton_rows.PEER_FIELDS:
            # the products' float32 accumulation dominates
            assert float(out[name][i]) == pytest.approx(twin[name], rel=2e-5, abs=2e-5), name


@pytest.mark.parametrize("seconds", [True, False])
def test_two_large_logits_in_one_cell_of_the_head(seconds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    V = 8192 + 4099
    weight = 1.8 * torch.randn((V, 16), generator=torch.Generator().manual_seed(8))
    weight[8], weight[9] = 9.0, 8.6  # row j of h picks column j of weight as its logits
    h = torch.eye(16)[:5].to(DEVICE)
    g = (torch.eye(16)[:5] + 0.01 * torch.eye(16)[5:10]).to(DEVICE)
    weight, tokens = weight.to(DEVICE), torch.tensor([8, 0, 9, V - 1, 10], device=DEVICE)
    again: list[int] = []
    rows_peer = triton_head.rows_peer

    def counted(*rows: torch.Tensor) -> dict[str, torch.Tensor]:
        again.append(len(rows[2]))
        return rows_peer(*rows)

    monkeypatch.setattr(triton_head, "rows_peer", counted)
    monkeypatch.setattr(triton_head, "SHAPE", replace(triton_head.SHAPE, seconds=seconds))
    out = triton_head.head_peer(h, g, triton_head.Heads(weight, weight), tokens)
    assert again == ([] if seconds else [5])  # without the second, λ_max is not certain on any of these rows
    x, z = h.double() @ weight.double().t(), g.double() @ weight.double().t()
    for i in range(5):
        twin = twin_row(x[i].cpu().numpy(), z[i].cpu().numpy(), int(tokens[i]), 10)
        for name in triton_rows.PEER_FIELDS:
            assert float(out[name][i]) == pytest.approx(twin[name], rel=4e-6, abs=2e-6), name


def test_arguments_that_do_not_fit_are_refused() -> None:
    x = torch.zeros((2, 5), device=DEVICE)
    y = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    with pytest.raises(DataError, match="fit together"):
        triton_rows.rows_all(x, x[:1], y, 10)
    with pytest.raises(DataError, match="type"):
        triton_rows.rows_all(x, x.to(torch.bfloat16), y, 10)
    with pytest.raises(DataError, match="top_k"):
        triton_rows.rows_all(x, x, y, 0)
    with pytest.raises(DataError, match="fit together"):
        triton_head.head_peer(x, x, triton_head.Heads(x[:, :4], x), y)


@pytest.mark.skipif(INTERPRETED, reason="the backend asks for CUDA")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_backend_agrees_with_numpy(dtype: type) -> None:
    ref, cand, tokens = draw(4099, "peaked")
    x, z = ref.numpy().astype(dtype), cand.numpy().astype(dtype)
    got = token_metrics(x, z, tokens.numpy(), "triton")
    want = token_metrics(x, z, tokens.numpy(), "numpy")
    for name in TOKEN_FIELDS:
        left, right = getattr(got, name), getattr(want, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_allclose(left, right, rtol=3e-6, atol=3e-6, err_msg=name)
    z[3, 7] = np.nan
    with pytest.raises(DataError, match="row 3 of cand_logits"):
        token_metrics(x, z, tokens.numpy(), "triton")
