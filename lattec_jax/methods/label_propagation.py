"""Label propagation over a graph of images and class texts: host side, NumPy and SciPy.

N nodes (the class texts first, then the images), D features, C classes, R directions, k neighbors.
Source: ReCLIP (arXiv 2308.03793, Sec. 3.2) and its repository, `models.LabelPropagationCluster`.
The repository builds the N × N affinity; here only its k largest entries a row ever exist together,
and they are the same ones: the search is exact.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

BLOCK = 2**24  # cosines that are held at once
CHUNK = 64  # cosines of which only the largest is looked at first


def class_directions(classes: Float[np.ndarray, "C D"], cut: int) -> Float[np.ndarray, "D R"]:
    """U₁: the left singular vectors of the class embeddings without the first, which they share,
    and without those beyond `cut`."""
    return np.linalg.svd(classes.T.astype(np.float32), full_matrices=False)[0][:, 1:cut]


def project(
    nodes: Float[np.ndarray, "N D"], directions: Float[np.ndarray, "D R"]
) -> Float[np.ndarray, "N R"]:
    """`U₁U₁ᵀx` normalized, in the coordinates of U₁.

    The columns of U₁ are orthonormal: lengths and cosines are those of the D coordinates.
    """
    points = nodes @ directions
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)


def nearest(
    points: Float[np.ndarray, "N R"], k: int
) -> tuple[Int[np.ndarray, "N k"], Float[np.ndarray, "N k"]]:
    """The k other points of largest cosine to each, in no order, and these cosines.

    Block by block of rows. A row's cosines are cut into chunks; the k chunks with the largest
    maxima hold the k largest cosines, so most entries are seen by one fast maximum only.

    Args:
        points: unit vectors.
        k: below N.
    """
    count = len(points)
    chunks = -(-count // CHUNK)
    padded = np.zeros((chunks * CHUNK, points.shape[1]), points.dtype)
    padded[:count] = points
    indices = np.empty((count, k), np.int32)
    cosines = np.empty((count, k), points.dtype)
    rows = max(1, BLOCK // len(padded))
    for start in range(0, count, rows):
        block = padded[start : min(start + rows, count)] @ padded.T  # [b, N padded]
        block[:, count:] = -np.inf
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -np.inf
        if chunks > k:
            # [b, N padded] -> [b, CHUNK, chunks]: chunk c holds the columns c, c + chunks, ...
            maxima = block.reshape(len(block), CHUNK, chunks).max(axis=1)
            best = _largest(maxima, k)
            columns = best[:, :, None] + np.arange(CHUNK) * chunks  # [b, k, CHUNK]
            columns = columns.reshape(len(block), -1)
            candidates = np.take_along_axis(block, columns, axis=1)
            found = np.take_along_axis(columns, _largest(candidates, k), axis=1)
        else:
            found = _largest(block, k)
        indices[start : start + len(block)] = found
        cosines[start : start + len(block)] = np.take_along_axis(block, found, axis=1)
    return indices, cosines


def _largest(rows: Float[np.ndarray, "b n"], k: int) -> Int[np.ndarray, "b k"]:
    """Where the k largest of each row are."""
    return np.argpartition(rows, rows.shape[1] - k, axis=1)[:, rows.shape[1] - k :]


def affinity_graph(points: Float[np.ndarray, "N R"], neighbors: int) -> scipy.sparse.csr_array:
    """`D^-1/2 W D^-1/2` with W the symmetric part of the affinities `(cos + 1) / 2` to the nearest.

    A graph smaller than the number of neighbors is complete.
    """
    count = len(points)
    indices, cosines = nearest(points, min(neighbors, count - 1))
    starts = np.arange(0, indices.size + 1, indices.shape[1])
    directed = scipy.sparse.csr_array(
        ((cosines.ravel().astype(np.float64) + 1) / 2, indices.ravel(), starts),
        shape=(count, count),
    )
    graph = (directed + directed.T) / 2
    # A node whose neighbors are all opposite has no affinity, and takes nothing from them.
    degree = np.maximum(graph.sum(axis=1), 1e-12)
    inverse = scipy.sparse.diags_array(degree**-0.5)
    return (inverse @ graph @ inverse).tocsr()


def diffuse(
    graph: scipy.sparse.csr_array,
    seeds: Float[np.ndarray, "N C"],
    diffusion: float,
    iterations: int,
    tolerance: float,
) -> Float[np.ndarray, "N C"]:
    """Solve `(I − diffusion · W) x = y` for every column by conjugate gradients from zero.

    All columns go together, each with its own step lengths, and one that has converged rests, so
    each is what `scipy.sparse.linalg.cg` finds.

    Args:
        graph: W, symmetric with eigenvalues of at most 1.
        seeds: the right-hand sides y.
        diffusion: below 1, so that A = I − diffusion · W is positive definite.
        iterations: at most.
        tolerance: of the residual's length, relative to that of y.
    """
    solution = np.zeros_like(seeds)  # x
    residual, direction = seeds.copy(), seeds.copy()  # y − A x, and where x is searched next
    squares = np.einsum("nc,nc->c", residual, residual)  # of the residuals' lengths
    targets = tolerance**2 * squares
    for _ in range(iterations):
        active = squares > targets
        if not active.any():
            break
        mapped = direction - diffusion * (graph @ direction)  # A · direction
        curvature = np.einsum("nc,nc->c", direction, mapped)
        step = np.divide(squares, curvature, out=np.zeros_like(squares), where=active)
        solution += step * direction
        residual -= step * mapped
        new_squares = np.einsum("nc,nc->c", residual, residual)
        direction *= np.divide(new_squares, squares, out=np.ones_like(squares), where=active)
        direction += active * residual
        squares = new_squares
    return solution


def propagate(
    texts: Float[np.ndarray, "C D"],
    images: Float[np.ndarray, "n D"],
    cut_dim: int,
    neighbors: int,
    diffusion: float,
    iterations: int,
    tolerance: float,
) -> Int[np.ndarray, " N"]:
    """The class of every node, texts first, by what the texts, the seeds of their classes, send
    through the graph. Texts and images are unit vectors; `config.method.reclip` explains the rest.
    """
    points = project(np.concatenate([texts, images]), class_directions(texts, cut_dim))
    seeds = np.zeros((len(points), len(texts)))
    np.fill_diagonal(seeds, 1.0)
    graph = affinity_graph(points, neighbors)
    reached = diffuse(graph, seeds, diffusion, iterations, tolerance)
    return reached.argmax(axis=1).astype(np.int32)


def centroids(
    nodes: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, " N"],
    former: Float[np.ndarray, "C D"],
) -> Float[np.ndarray, "C D"]:
    """The normalized mean of each class's nodes; a class without any keeps its former vector."""
    found = former.copy()
    for label in np.unique(labels):
        mean = nodes[labels == label].mean(axis=0, dtype=np.float64)
        found[label] = mean / max(np.linalg.norm(mean), 1e-12)
    return found
