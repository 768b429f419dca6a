"""Parameters of the compatible dialects: from the query or the form, lists as ``name[]``, and unknown ones ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel

from metalscribe.api.options import blank_is_none, validated
from metalscribe.errors import InvalidParameter

_Model = TypeVar("_Model", bound=BaseModel)


def parse(model: type[_Model], query: Iterable[tuple[str, str]], form: Mapping[str, list[str]]) -> _Model:
    """The parameters of a request, wherever they came.

    A list takes every value of ``name`` and ``name[]``; empty values count as left out.

    Args:
        model: what is known; its fields say whether they are lists.
        query: the query's pairs.
        form: the form's fields, without the recording.

    Raises:
        InvalidParameter: malformed, or given twice.
    """
    pairs = [*query, *((name, value) for name, values in form.items() for value in values)]
    values: dict[str, Any] = {}
    for field, description in model.model_fields.items():
        name = description.alias or field
        given = [value for spelt, value in pairs if spelt in {name, f"{name}[]"} and blank_is_none(value) is not None]
        if get_origin(description.annotation) is tuple:
            values[name] = given
        elif given:
            if any(value != given[0] for value in given):
                raise InvalidParameter(f"{name} is given twice with different values", name)
            values[name] = given[0]
    try:
        return validated(model, values)
    except InvalidParameter as error:
        # The third value of a list is, to whoever sent it, a value of the list.
        raise InvalidParameter(error.detail, (error.parameter or "").partition(".")[0] or None) from None
