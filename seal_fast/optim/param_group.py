"""An optimiser's `param_groups`, whose numbers are places on the device: written to, never replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class ParamGroup(dict[str, Any]):
    """A dict as torch's optimisers have it, which holds on to the tensors in `numbers`.

    A kernel reads their memory. A number put in their place would be read by no one, so it is refused where it is put.

    Args:
        group: everything else in the group.
        numbers: tensors by name.
    """

    numbers: Mapping[str, Tensor] = {}  # a copy being unpickled is filled before it has its own

    def __init__(self, group: Mapping[str, Any], numbers: Mapping[str, Tensor]) -> None:
        super().__init__(group, **numbers)
        self.numbers = dict(numbers)

    def __setitem__(self, name: str, value: Any) -> None:
        """As in any dict, but for the numbers.

        Raises:
            RuntimeError: `name` is one of them, and `value` another tensor or no tensor.
        """
        if value is not self.numbers.get(name, value):
            raise self._refused(name)
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        """As in any dict, but for the numbers.

        Raises:
            RuntimeError: `name` is one of them.
        """
        if name in self.numbers:
            raise self._refused(name)
        super().__delitem__(name)

    def update(self, *others: Any, **more: Any) -> None:
        """Item by item."""
        for name, value in dict(*others, **more).items():
            self[name] = value

    def __ior__(self, other: Any) -> ParamGroup:  # type: ignore[misc, override]
        self.update(other)
        return self

    def pop(self, name: str, *default: Any) -> Any:
        """As in any dict, but for the numbers, as in `__delitem__`."""
        if name in self.numbers:
            raise self._refused(name)
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, Any]:
        """Not offered: numbers stay.

        Raises:
            RuntimeError: always.
        """
        raise self._refused(next(reversed(self)))

    def clear(self) -> None:
        """Not offered, see `popitem`."""
        self.popitem()

    def _refused(self, name: str) -> RuntimeError:
        group = self.get("name")
        return RuntimeError(
            f"{name} of param_groups' {group!r} cannot be replaced, because the kernel reads it where it is: "
            f"use set_hyperparameters({group!r}, {name}=...), or fill_ the tensor in place"
        )


class ParamGroups(list[dict[str, Any]]):
    """A list as torch's optimisers have it, of groups that a kernel knows: none is added, replaced or taken away.

    What would do so raises RuntimeError.
    """

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(
            "the groups in param_groups cannot be replaced, because the kernel reads their numbers where they are: "
            "use set_hyperparameters, load_state_dict, or fill_ the tensors in place"
        )

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:  # what is unpickled otherwise is an empty list that is then appended to
        return ParamGroups, (list(self),)
