"""A group's numbers are written to where they are, and groups stay; everything else is as in a dict or list."""

import copy
import pickle

import pytest
import torch

from seal_fast.optim.param_group import ParamGroup, ParamGroups


def late():
    hyper = torch.tensor([0.1, 0.9])
    return ParamGroup({"name": "late", "params": []}, {"lr": hyper[0], "momentum": hyper[1]})


@pytest.mark.parametrize(
    "replace",
    [
        lambda group: group.__setitem__("lr", 0.5),
        lambda group: group.__setitem__("lr", torch.tensor(0.1)),
        lambda group: group.update(lr=0.5),
        lambda group: group.__ior__({"lr": 0.5}),
        lambda group: group.pop("lr"),
        lambda group: group.__delitem__("lr"),
    ],
)
def test_a_number_is_not_replaced(replace):
    group = late()
    before = dict(group)
    with pytest.raises(RuntimeError, match=r"lr of .* use set_hyperparameters\('late', lr=...\)"):
        replace(group)
    assert group.keys() == before.keys() and all(group[name] is value for name, value in before.items())


@pytest.mark.parametrize("empty", [ParamGroup.clear, ParamGroup.popitem])
def test_a_group_is_not_emptied(empty):
    group = late()
    with pytest.raises(RuntimeError, match="cannot be replaced"):
        empty(group)
    assert list(group) == ["name", "params", "lr", "momentum"]


def test_all_else_is_as_in_a_dict():
    group = late()
    group["lr"] = group["lr"]
    group |= {"initial_lr": 0.1}
    group.update(last_epoch=3)
    del group["last_epoch"]
    assert group.pop("initial_lr") == 0.1 and group.pop("initial_lr", None) is None
    assert group.setdefault("lr", 7) is group["lr"]
    group["lr"].fill_(0.25)
    assert group["lr"].item() == 0.25


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda group: pickle.loads(pickle.dumps(group))])
def test_a_copy_guards_numbers_of_its_own(duplicate):
    group = late()
    other = duplicate(group)
    assert other["lr"].item() == group["lr"].item() and other["lr"] is other.numbers["lr"] is not group["lr"]
    with pytest.raises(RuntimeError, match="set_hyperparameters"):
        other["lr"] = 1.0


@pytest.mark.parametrize(
    "change",
    [
        lambda groups: groups.__setitem__(0, groups[1]),
        lambda groups: groups.__setitem__(slice(0, 1), []),
        lambda groups: groups.__delitem__(0),
        lambda groups: groups.__iadd__([late()]),
        lambda groups: groups.__imul__(2),
        lambda groups: groups.append(late()),
        lambda groups: groups.extend([late()]),
        lambda groups: groups.insert(0, late()),
        lambda groups: groups.remove(groups[0]),
        lambda groups: groups.sort(key=id),
        ParamGroups.pop,
        ParamGroups.clear,
        ParamGroups.reverse,
    ],
)
def test_groups_are_neither_added_nor_replaced_nor_taken_away(change):
    before = [late(), late()]
    groups = ParamGroups(before)
    with pytest.raises(RuntimeError, match="groups in param_groups cannot be replaced"):
        change(groups)
    assert len(groups) == 2 and all(group is kept for group, kept in zip(groups, before, strict=True))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda groups: pickle.loads(pickle.dumps(groups))])
def test_copied_groups_stay_too(duplicate):
    groups = duplicate(ParamGroups([late(), late()]))
    assert type(groups) is ParamGroups and [group["name"] for group in groups] == ["late", "late"]
    assert all(type(group) is ParamGroup for group in groups)
