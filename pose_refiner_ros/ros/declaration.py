# SPDX-License-Identifier: Apache-2.0
"""What a parameter of the node is: its values, when they take effect, how rclpy is told of it."""

import contextlib
import math
import re
from dataclasses import dataclass

# When a changed value takes effect, and what the generated texts say about it.
NOW = "now"
ACTIVATE = "activate"
RELOAD = "reload"
START = "start"
EFFECT = {
    NOW: "at the next frame",
    ACTIVATE: "at the next `activate` (`deactivate` first)",
    RELOAD: "at `~/reload_objects`, or at the next `configure`",
    START: "only at start (read-only)",
}


@dataclass(frozen=True)
class Declaration:
    """One parameter: its default, meaning and the values it takes."""

    name: str
    default: object
    description: str
    effect: str = NOW
    minimum: float | None = None
    maximum: float | None = None
    pattern: str | None = None  # a whole string, or each item of a list, must match
    choices: tuple[str, ...] = ()
    length: int | None = None  # of a list of numbers

    @property
    def attribute(self):
        """Its name among the values that `read` gives."""
        return self.name.replace(".", "_")

    @property
    def type_name(self):
        if isinstance(self.default, list):
            return "double[]" if self.length else "string[]"
        return {bool: "bool", int: "int", float: "double", str: "string"}[type(self.default)]

    @property
    def allowed(self):
        """The allowed values in words, for descriptors and documents."""
        if self.choices:
            return "one of: " + ", ".join(self.choices)
        if self.minimum is not None:
            return f"{self.minimum} to {self.maximum}"
        if self.length is not None:
            return f"{self.length} numbers"
        return f"must match {self.pattern}" if self.pattern else ""

    def problem(self, value):
        """Why `value` cannot be taken, or None. Types are checked by rclpy."""
        if self.minimum is not None and not self.minimum <= value <= self.maximum:
            return f"{self.name} is {value}: it must lie within {self.minimum} to {self.maximum}"
        if self.length is not None:
            if len(value) != self.length or not all(map(math.isfinite, value)):
                return f"{self.name} is {list(value)}: it must be {self.allowed}"
            return None
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if self.choices and item and item not in self.choices:
                return f"{self.name} is '{item}': it must be {self.allowed}"
            if self.pattern and item and not re.fullmatch(self.pattern, item):
                return f"{self.name} is '{item}': it {self.allowed}"
        if self.choices and value == "":
            return f"{self.name} is empty: it must be {self.allowed}"
        return None


class ParameterError(ValueError):
    """A parameter has a value that cannot be used."""


def declare_one(node, declaration):
    """Declare it on `node`. ParameterError for a value at start that is not allowed."""
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    descriptor = _descriptor(declaration)
    override = getattr(node, "_parameter_overrides", {}).get(declaration.name)
    value = _with_decimals(declaration, getattr(override, "value", None))
    if value is not None:
        if declaration.problem(value):
            raise ParameterError(declaration.problem(value))
        node.declare_parameter(declaration.name, value, descriptor, ignore_override=True)
        return
    try:
        node.declare_parameter(declaration.name, declaration.default, descriptor)
    except InvalidParameterTypeException as error:
        raise ParameterError(
            f"{declaration.name} is of type {declaration.type_name}: {error}"
        ) from None
    except InvalidParameterValueException as error:
        raise ParameterError(f"{declaration.name} must be {declaration.allowed}: {error}") from None


def _with_decimals(declaration, value):
    """rclpy takes no 5 for 5.0. Everybody writes it: the converted value, or None where it is no
    whole number or none is wanted."""
    if isinstance(declaration.default, float) and type(value) is int:
        return float(value)
    if declaration.length is not None and not isinstance(value, str):
        with contextlib.suppress(TypeError):  # not a sequence: rclpy says what is wrong
            if all(type(item) is int for item in value):
                return [float(item) for item in value]
    return None


def _descriptor(declaration):
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    descriptor = ParameterDescriptor(
        description=declaration.description,
        additional_constraints="; ".join(
            text
            for text in (declaration.allowed, f"takes effect {EFFECT[declaration.effect]}")
            if text
        ),
        read_only=declaration.effect == START,
    )
    if declaration.minimum is not None:
        if isinstance(declaration.default, float):
            bounds = FloatingPointRange(
                from_value=float(declaration.minimum), to_value=float(declaration.maximum)
            )
            descriptor.floating_point_range = [bounds]
        else:
            bounds = IntegerRange(
                from_value=int(declaration.minimum), to_value=int(declaration.maximum)
            )
            descriptor.integer_range = [bounds]
    return descriptor
