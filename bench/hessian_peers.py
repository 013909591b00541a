"""The libraries that `bench_hessian.py` races against: each takes (problem, number) and gives (values, products).

PyHessian's `density` calls torch.eig, which torch has removed: it is given torch.linalg.eigh in its place and is
otherwise its own.
"""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch
import torch.nn.functional as F

from seal_fast.models import layers

# What a contender needs. curvlinops is not in the extra `bench`: it asks for torchvision, whose wheel is built for the
# CUDA torch and does not import beside the CPU's. Without it: pip install --no-deps curvlinops-for-pytorch einops
# einconv opt-einsum linear_operator backpack-for-pytorch
NEEDS = {"PyHessian": "pyhessian", "curvlinops": "curvlinops", "hessian-eigenthings": "hessian_eigenthings"}


def loss(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def pyhessian(problem, top):
    from pyhessian import hessian

    module, made = sys.modules["pyhessian.hessian"], [0]
    product = sys.modules["pyhessian.utils"].hessian_vector_product

    def counted(*arguments):
        made[0] += 1
        return product(*arguments)

    model, x, y = problem
    module.hessian_vector_product = counted
    torch.manual_seed(0)
    try:
        found, _ = hessian(model, loss, data=(x, y), cuda=False).eigenvalues(top_n=top)
    finally:
        module.hessian_vector_product = product
        model.zero_grad(set_to_none=True)
    return found, made[0]


def curvlinops_eigsh(problem, top=0, bottom=0):
    import numpy as np
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import LinearOperator, eigsh

    model, x, y = problem
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    parameters = list(model.parameters())
    operator = HessianLinearOperator(model, criterion, parameters, [(x, y)], check_deterministic=False).to_scipy()
    made = [0]

    def counted(v):
        made[0] += 1
        return operator @ v

    counting = LinearOperator(operator.shape, matvec=counted, dtype=np.float32)
    start = np.random.default_rng(0).standard_normal(operator.shape[0]).astype(np.float32)
    which = {"k": top, "which": "LA"} if top else {"k": bottom, "which": "SA"}
    with pytest.MonkeyPatch.context() as patch:  # it differentiates by torch.func, which takes torch's operations alone
        patch.setattr(layers, "conv2d", lambda x, weight, *rest: F.conv2d(x, weight, None, *rest))
        found = eigsh(counting, tol=1e-3, v0=start, return_eigenvectors=False, **which)
    return sorted(map(float, found), reverse=bool(top)), made[0]


def eigenthings(problem, top, steps):
    from hessian_eigenthings import HessianOperator as Theirs
    from hessian_eigenthings import lanczos as theirs
    from hessian_eigenthings import supervised_loss

    model, x, y = problem
    operator = Theirs(model, [(x, y)], supervised_loss(loss))
    found = theirs(operator, k=top, max_iter=steps, which="LA", seed=0)
    return found.eigenvalues.tolist(), steps


def pyhessian_density(problem, steps):
    from pyhessian import hessian

    def eig(matrix, eigenvectors):
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], 1), vectors

    model, x, y = problem
    torch.eig = eig
    with contextlib.suppress(AttributeError):
        hessian(model, loss, data=(x, y), cuda=False).density(iter=steps, n_v=1)
    model.zero_grad(set_to_none=True)
    return [], steps
