"""Small JSON bodies."""

from __future__ import annotations

import json
from typing import Any, Final

from starlette.requests import Request

from metalscribe.api.uploads import arriving
from metalscribe.errors import InvalidParameter, UploadTooLarge

_JSON_BYTES: Final = 64 * 1024


async def read_json(request: Request, example: str, parameter: str | None = None) -> dict[str, Any]:
    """The body as a JSON object; an empty one where there is no body.

    Args:
        request: its body has not been read.
        example: what to show to somebody who sent something else.
        parameter: the one whose lack they will have to mend.

    Raises:
        InvalidParameter: it is not JSON, or not an object.
        UploadTooLarge: more than 64 KiB.
        UploadStalled: nothing came for a minute.
    """
    body = bytearray()
    async for data in arriving(request):
        body += data
        if len(body) > _JSON_BYTES:
            raise UploadTooLarge(f"the JSON body has more than {_JSON_BYTES} bytes")
    if not body:
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidParameter(f"the body is not JSON; send {example}", parameter) from None
    if not isinstance(document, dict):
        raise InvalidParameter(f"the body must be a JSON object such as {example}", parameter)
    return document
