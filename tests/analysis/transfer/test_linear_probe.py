import numpy as np
import pytest
import torch

from seal_fast.analysis.transfer.linear_probe import fit_path
from seal_fast.utils.errors import RunError

PATH = [1.0, 0.1, 0.01, 0.001]


@pytest.fixture(scope="module")
def problem():
    """Correlated features on very different scales, far from centred, classes of unequal size."""
    random = np.random.default_rng(0)
    labels = random.choice(4, 300, p=[0.4, 0.3, 0.2, 0.1])
    mixed = random.normal(size=(300, 30)) @ random.normal(size=(30, 30)) * np.logspace(0, -2, 30)
    features = mixed + random.normal(size=(4, 30))[labels] + 3
    return torch.from_numpy(features), torch.from_numpy(labels)


def objective(weight, bias, features, labels, l2):
    """Written out: mean cross entropy and half the penalty."""
    logits = features @ weight.T + bias
    own = logits[torch.arange(len(labels)), labels]
    return (torch.log(torch.exp(logits).sum(1)) - own).mean().item() + l2 / 2 * (weight**2).sum().item()


def test_the_optimum_is_scikit_learns(problem):
    from sklearn.linear_model import LogisticRegression

    features, labels = problem
    for found in fit_path(features, labels, 4, PATH):
        model = LogisticRegression(C=1 / (found.l2 * 300), tol=1e-10, solver="newton-cholesky")
        model.fit(features.numpy(), labels.numpy())
        theirs = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        own = objective(found.weight, found.bias, features, labels, found.l2)
        assert own == pytest.approx(found.loss, abs=1e-12)
        assert abs(own - objective(*theirs, features, labels, found.l2)) < 1e-6
        assert (found.logits(features).argmax(1).numpy() == model.predict(features.numpy())).mean() > 0.99


def test_tightened_it_is_scikit_learns_to_the_weights(problem):
    from sklearn.linear_model import LogisticRegression

    features, labels = problem
    (found,) = fit_path(features, labels, 4, [0.1], tolerance=1e-15)
    model = LogisticRegression(C=1 / (0.1 * 300), tol=1e-12, max_iter=20000, solver="newton-cg")
    model.fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(found.weight.numpy(), model.coef_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.bias.numpy(), model.intercept_ - model.intercept_.mean(), rtol=0, atol=1e-5)


def test_the_gap_bounds_what_is_left(problem):
    features, labels = problem
    roughly, exactly = (fit_path(features, labels, 4, PATH, tolerance=tolerance) for tolerance in (1e-3, 1e-15))
    for rough, exact in zip(roughly, exactly, strict=True):
        assert -1e-12 <= rough.loss - exact.loss <= rough.gap <= 1e-3


def test_the_start_changes_the_way_not_the_end(problem):
    features, labels = problem
    path = fit_path(features, labels, 4, PATH, tolerance=1e-12)
    alone = [fit_path(features, labels, 4, [l2], tolerance=1e-12)[0] for l2 in PATH]
    for a, b in zip(path, alone, strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=1e-4)
        assert a.loss == pytest.approx(b.loss, abs=1e-11)


def test_more_features_than_images_constant_ones_and_separable_classes():
    random = torch.Generator().manual_seed(0)
    features = torch.randn(40, 60, generator=random)
    features[:, 7] = 2.5
    labels = torch.arange(40) % 2
    (found,) = fit_path(features, labels, 2, [1e-4])
    assert (found.logits(features).argmax(1) == labels).all()
    assert found.weight[:, 7].abs().max() < 1e-3  # a constant feature is the bias's business
    (all_one,) = fit_path(torch.zeros(40, 3), labels, 2, [0.1])
    assert all_one.loss == pytest.approx(np.log(2))


def test_the_bias_alone_gives_the_share_of_each_class():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    (found,) = fit_path(torch.zeros(10, 2), labels, 3, [1.0], tolerance=1e-14)
    torch.testing.assert_close(torch.softmax(found.bias, 0), torch.tensor([0.6, 0.3, 0.1]).double(), atol=1e-6, rtol=0)


def test_what_cannot_converge_ends_in_a_sentence(problem):
    features, labels = problem
    with pytest.raises(RunError, match="L2 0.01 has not converged in 1 iterations"):
        fit_path(features, labels, 4, [0.01], max_iterations=1)
    with pytest.raises(RunError, match="NaN or infinite"):
        fit_path(features / 0, labels, 4, [0.01])
