import pytest

from seal_fast.methods.partition import ForwardOrder, split
from seal_fast.utils.errors import UsageError

NAMES = ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer2.0.conv1.weight"]
NAMES += ["layer2.1.conv1.weight", "layer3.0.conv1.weight", "layer3.10.conv1.weight", "fc.weight", "fc.bias"]
SIZES = {name: i + 1 for i, name in enumerate(NAMES)}


@pytest.mark.parametrize(("threshold", "first_late"), [("layer3", 6), ("layer2.1", 5), ("fc", 8), ("layer3.10", 7)])
def test_everything_from_the_threshold_on_is_late(threshold, first_late):
    partition = split(ForwardOrder(SIZES), (threshold,))
    assert partition.groups == {"early": tuple(NAMES[:first_late]), "late": tuple(NAMES[first_late:])}
    assert partition.count("early") + partition.count("late") == sum(SIZES.values())


def test_the_classifier_can_be_a_group_of_its_own():
    partition = split(ForwardOrder(SIZES), ("layer3", "fc"), ("early", "late", "fc"))
    assert partition.groups["fc"] == ("fc.weight", "fc.bias")
    assert partition.groups["late"] == ("layer3.0.conv1.weight", "layer3.10.conv1.weight")


def test_prints_where_the_split_is():
    text = str(split(ForwardOrder(SIZES), ("layer3",)))
    assert "early conv1 to layer2.1.conv1 (6 tensors, 21 parameters" in text
    assert "late layer3.0.conv1 to fc (4 tensors, 34 parameters" in text


def test_unknown_threshold_names_the_likely_one():
    with pytest.raises(UsageError, match=r"--layer-threshold layr3: .* did you mean layer3\?"):
        split(ForwardOrder(SIZES), ("layr3",))
    with pytest.raises(UsageError, match="no such layer"):
        split(ForwardOrder(SIZES), ("layer3.1",))  # a prefix of layer3.10 but no module


def test_an_empty_early_group_is_refused():
    with pytest.raises(UsageError, match="early group would be empty"):
        split(ForwardOrder(SIZES), ("conv1",))


def test_cuts_out_of_order_are_refused():
    with pytest.raises(UsageError, match="the cuts layer3, layer2 are not in forward order"):
        split(ForwardOrder(SIZES), ("layer3", "layer2"), ("a", "b", "c"))
