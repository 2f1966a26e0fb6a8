"""Label propagation against dense float64 NumPy, SciPy's solvers, and the memory it may take."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from lattec_jax.methods import label_propagation
from tests.methods.reference import unit


def clusters(count: int, classes: int, width: int, spread: float, seed: int = 0):
    """Class texts, images around them with a gap between the modalities, and their classes."""
    rng = np.random.default_rng(seed)
    centers, common, gap = (rng.normal(size=(n, width)) for n in (classes, 1, 1))
    true = rng.integers(0, classes, count)
    texts = unit(0.4 * centers + 2 * common)
    images = unit(0.4 * centers[true] + gap + 2 * common + spread * rng.normal(size=(count, width)))
    return texts.astype(np.float32), images.astype(np.float32), true


def dense_graph(nodes: np.ndarray, texts: np.ndarray, cut: int, neighbors: int) -> np.ndarray:
    """The normalized affinity of the repository, entry by entry in float64."""
    left = np.linalg.svd(texts.T.astype(np.float64))[0][:, 1 : min(cut, len(texts))]
    points = unit(nodes.astype(np.float64) @ left @ left.T)
    affinity = (points @ points.T + 1) / 2
    np.fill_diagonal(affinity, 0)
    kept = np.zeros_like(affinity)
    for row, values in enumerate(affinity):
        best = np.argsort(-values)[:neighbors]
        kept[row, best] = values[best]
    symmetric = (kept + kept.T) / 2
    root = 1 / np.sqrt(symmetric.sum(axis=1))
    return root[:, None] * symmetric * root[None, :]


@pytest.mark.parametrize(("classes", "cut"), [(7, 768), (40, 12), (40, 768)])
def test_projection_and_graph_equal_the_dense_formula(classes, cut):
    texts, images, _ = clusters(500, classes, 24, 0.3)
    nodes = np.concatenate([texts, images])
    directions = label_propagation.class_directions(texts, cut)
    assert directions.shape == (24, min(cut, classes, 24) - 1)
    left = np.linalg.svd(texts.T.astype(np.float64))[0][:, 1 : min(cut, classes)]
    np.testing.assert_allclose(directions @ directions.T, left @ left.T, atol=2e-6)
    points = label_propagation.project(nodes, directions)
    expected = unit(nodes.astype(np.float64) @ left @ left.T)
    np.testing.assert_allclose(points @ directions.T, expected, atol=1e-5)

    graph = label_propagation.affinity_graph(points, 20)
    dense = dense_graph(nodes, texts, cut, 20)
    # Neighbors of all but equal cosines may change places: few entries, and the rest equal.
    differing = np.abs(graph.toarray() - dense) > 1e-5
    assert differing.mean() < 1e-4
    assert np.abs(graph - graph.T).max() < 1e-15
    assert graph.diagonal().max() == 0


@pytest.mark.parametrize("count", [60, 1500, pytest.param(5000, marks=pytest.mark.full)])
@pytest.mark.parametrize("block", [2**24, 2**13])
def test_the_search_is_exact(count, block, monkeypatch):
    """Few and many groups, one and many blocks."""
    monkeypatch.setattr(label_propagation, "BLOCK", block)
    points = unit(np.random.default_rng(1).normal(size=(count, 6))).astype(np.float32)
    indices, cosines = label_propagation.nearest(points, 20)
    all_cosines = points @ points.T
    np.fill_diagonal(all_cosines, -2)
    expected = -np.sort(-all_cosines, axis=1)[:, :20]
    np.testing.assert_allclose(-np.sort(-cosines, axis=1), expected, atol=1e-6)
    assert not (indices == np.arange(count)[:, None]).any()
    assert all(len(set(row)) == 20 for row in indices)


def test_a_graph_smaller_than_the_neighbors_is_complete():
    texts, images, _ = clusters(5, 3, 8, 0.2)
    labels = label_propagation.propagate(texts, images, 768, 20, 0.99, 20, 1e-6)
    assert labels.shape == (8,)
    directions = label_propagation.class_directions(texts, 768)
    nodes = label_propagation.project(np.concatenate([texts, images]), directions)
    assert label_propagation.affinity_graph(nodes, 20).nnz == 8 * 7


@pytest.mark.parametrize("tolerance", [1e-6, 1e-2, 0.3])
def test_conjugate_gradients_are_scipy_s_column_by_column(tolerance):
    texts, images, _ = clusters(400, 9, 16, 0.5)
    points = label_propagation.project(
        np.concatenate([texts, images]), label_propagation.class_directions(texts, 768)
    )
    graph = label_propagation.affinity_graph(points, 20)
    seeds = np.eye(len(points), 9)
    seeds[:, 0] *= 50  # the tolerance is relative
    seeds[:, 8] = 0
    found = label_propagation.diffuse(graph, seeds, 0.99, 20, tolerance)
    matrix = scipy.sparse.eye_array(len(points)) - 0.99 * graph
    for column in range(9):
        expected, _ = scipy.sparse.linalg.cg(
            matrix, seeds[:, column], rtol=tolerance, atol=0.0, maxiter=20
        )
        np.testing.assert_allclose(found[:, column], expected, rtol=0, atol=1e-12)
    exact = label_propagation.diffuse(graph, seeds, 0.99, 2000, 1e-12)
    direct = scipy.linalg.solve(matrix.toarray(), seeds, assume_a="pos")
    np.testing.assert_allclose(exact, direct, atol=1e-10)


def test_labels_are_those_of_the_direct_solution():
    """N = 2,000: the dense graph and a direct solver in float64."""
    texts, images, true = clusters(2000, 10, 64, 0.35)
    labels = label_propagation.propagate(texts, images, 768, 20, 0.99, 20, 1e-6)
    nodes = np.concatenate([texts, images])
    matrix = np.eye(len(nodes)) - 0.99 * dense_graph(nodes, texts, 768, 20)
    solved = scipy.linalg.solve(matrix, np.eye(len(nodes), 10), assume_a="pos")
    assert np.mean(labels == solved.argmax(axis=1)) >= 0.999
    # Propagation does better than the nearest text, or the graph would be for nothing.
    nearest_text = np.mean((images @ texts.T).argmax(axis=1) == true)
    assert np.mean(labels[10:] == true) > nearest_text


def test_centroids_are_means_of_all_nodes_of_a_label():
    rng = np.random.default_rng(0)
    nodes = unit(rng.normal(size=(30, 5))).astype(np.float32)
    former = unit(rng.normal(size=(4, 5))).astype(np.float32)
    labels = rng.integers(0, 3, 30)  # none of class 3
    found = label_propagation.centroids(nodes, labels, former)
    for c in range(3):
        expected = unit(nodes[labels == c].astype(np.float64).mean(axis=0))
        np.testing.assert_allclose(found[c], expected, atol=1e-6)
    np.testing.assert_array_equal(found[3], former[3])


FOOD101 = """
import resource, time
import numpy as np
from lattec_jax.methods import propagation

rng = np.random.default_rng(0)
unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
texts = unit(rng.standard_normal((101, 512), dtype=np.float32))
images = unit(rng.standard_normal((70_700, 512), dtype=np.float32))
start = time.perf_counter()
labels = propagation.propagate(texts, images, 768, 20, 0.99, 20, 1e-6)
seconds = time.perf_counter() - start
assert labels.shape == (70_801,)
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.soak
def test_food101_fits_into_4_gib(capsys):
    """70,700 images of 512 features and 101 classes, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FOOD101], capture_output=True, text=True, check=True
    )
    seconds, gib = map(float, done.stdout.split())
    with capsys.disabled():
        print(f"\npropagation over 70,801 nodes: {seconds:.0f} s, at most {gib:.2f} GiB")
    assert gib < 4
