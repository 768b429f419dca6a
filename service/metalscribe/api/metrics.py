"""``GET /metrics``: the service's series, as Prometheus (or OpenMetrics, where the scraper asks for it) reads them."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from metalscribe.api import examples
from metalscribe.api.problems import documented
from metalscribe.api.services import Services
from metalscribe.store.identity import Scope


def router(services: Services, registry: CollectorRegistry) -> APIRouter:
    """The route; wants a key with the scope ``metrics``."""
    routes = APIRouter(tags=["operation"])

    @routes.get(
        "/metrics",
        summary="The service's series for Prometheus",
        response_class=Response,
        responses={
            200: {
                "description": "Text format of Prometheus, or of OpenMetrics",
                "content": {
                    "text/plain": {"schema": {"type": "string"}, "example": examples.METRICS},
                    "application/openmetrics-text": {
                        "schema": {"type": "string"},
                        "example": f"{examples.METRICS}# EOF\n",
                    },
                },
            },
            **documented(401, 403, 429),
        },
        dependencies=[Depends(services.auth.require(Scope.METRICS))],
    )
    async def metrics(request: Request) -> Response:
        await services.jobs.measure()
        encode, media_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), headers={"Content-Type": media_type})

    return routes
