"""Our handlers inside Flower, and a guard before all of its own: no page without a login but the health check."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flower.urls
from flower.api import BaseApiHandler
from flower.views import BaseHandler, auth, monitor
from prometheus_client import generate_latest
from tornado.template import DictLoader
from tornado.web import HTTPError, URLSpec, authenticated

from workers.monitor import archive, rewrites
from workers.monitor.archive_metrics import counts as products_counts
from workers.monitor.board import Board, Snapshot
from workers.monitor.consumers import overview
from workers.monitor.jobs import sections
from workers.monitor.metrics import exposition
from workers.monitor.readable import one_line
from workers.monitor.rewrite_metrics import counts

REFRESH_SECONDS = 15
# The health check says OK and nothing else; login and logout belong to OAuth, and show nothing.
_OPEN = (monitor.Healthcheck, auth.LoginHandler, auth.LogoutHandler)
_NAVBAR = "navbar.html"
_LINK = """<li class="nav-item">
          <a class="nav-link{% if active_tab == 'headrace' %} active{% end %}" href="{{ reverse_url('headrace') }}"
            {% if active_tab == 'headrace' %}aria-current="page"{% end %}>Headrace</a>
        </li>
      </ul>"""


class Guarded(BaseHandler):
    """Flower's handlers are open until each is decorated; this asks for the login before any of them runs."""

    def prepare(self) -> Any:
        self._require_login()
        return None if self._finished else super().prepare()

    @authenticated
    def _require_login(self) -> None:
        """Tornado answers 401, or sends a browser to the OAuth login."""

    def get_current_user(self) -> Any:
        try:
            return super().get_current_user()
        except TypeError as error:  # Flower's comparison takes ASCII only; anything else is no login of ours
            raise HTTPError(401) from error

    def get_active_queue_names(self) -> list[str]:
        """Flower's own answer is what online workers consume: a queue would vanish when its worker does."""
        registered = {queue.name for queue in self.capp.conf.task_queues}
        return sorted(registered | set(super().get_active_queue_names()))


class Metrics(Guarded, monitor.Metrics):
    """Flower's metrics and ours, for a login or for `Authorization: Bearer <scrape token>`."""

    def initialize(self, board: Board, token: str) -> None:
        self._board = board
        self._token = token

    def get_current_user(self) -> Any:
        scheme, _, given = self.request.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and hmac.compare_digest(given.strip().encode(), self._token.encode()):
            return "metrics"
        return super().get_current_user()

    async def get(self) -> None:
        self.application.purge_offline_worker_metrics()
        ours = exposition(await self._board.look())
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.write(generate_latest() + ours)


class Page(Guarded):
    """`/headrace`: queues, hosts, pauses, failures and every room at one look."""

    def initialize(self, board: Board) -> None:
        self._board = board

    async def get(self) -> None:
        snapshot = await self._board.look()
        self.set_header("Refresh", str(REFRESH_SECONDS))
        self.set_header("Cache-Control", "no-store")
        self.render(
            "headrace.html",
            look=snapshot,
            reason=reason,
            consumers=consumers(snapshot),
            sections=list(sections(snapshot.postprocessing)),
            dispatch=overview(snapshot.dispatch, datetime.now(UTC)),
            rewrites=counts(snapshot.repack),
            products=products_counts(snapshot.products),
        )


class RewritesPage(Guarded):
    """`/headrace/repack`: tables that are being rewritten, or were lately, and what others are thought to waste."""

    def initialize(self, board: Board) -> None:
        self._board = board

    async def get(self) -> None:
        found = await self._board.rewrites()
        self.set_header("Refresh", str(REFRESH_SECONDS))
        self.set_header("Cache-Control", "no-store")
        self.render("headrace_repack.html", rewrites=rewrites.overview(found))


class ProductsPage(Guarded):
    """`/headrace/products`: missions, builds in hand, what failed, the quarantine and the newest builds."""

    def initialize(self, board: Board) -> None:
        self._board = board

    async def get(self) -> None:
        found = await self._board.products()
        self.set_header("Refresh", str(REFRESH_SECONDS))
        self.set_header("Cache-Control", "no-store")
        self.render("headrace_products.html", products=archive.overview(found))


class GraphPicture(Guarded):
    """`/headrace/products/graph/MISSION.svg`: what is made of what, with what is due and what failed."""

    def initialize(self, board: Board) -> None:
        self._board = board

    async def get(self, mission: str) -> None:
        found = await self._board.graph(mission)
        self.set_header("Cache-Control", "no-store")
        if found.error is not None:
            self.set_status(503)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(archive.trouble(found.error))
            return
        if found.value is None:
            raise HTTPError(404)
        self.set_header("Content-Type", "image/svg+xml; charset=utf-8")
        # A picture is all that it is, whatever a product is called.
        self.set_header("Content-Security-Policy", "default-src 'none'; sandbox")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.write(found.value)


class RevokeRefused(Guarded, BaseApiHandler):
    """Flower's Revoke button is off: message ids come again, and workers would discard them for hours."""

    def post(self, _task: str) -> None:
        raise HTTPError(
            403, "Headrace refuses `revoke`: the same id comes again and would be discarded. Use `headrace cancel RUN`."
        )


def install(board: Board, token: str) -> None:
    """Put ours in front and guard the rest. Call it before the Flower application is made, once."""
    flower.urls.settings["template_loader"] = _templates(Path(flower.urls.settings["template_path"]))
    ours = [
        URLSpec(r"/headrace", Page, {"board": board}, name="headrace"),
        URLSpec(r"/headrace/repack", RewritesPage, {"board": board}, name="headrace-repack"),
        URLSpec(r"/headrace/products", ProductsPage, {"board": board}, name="headrace-products"),
        URLSpec(r"/headrace/products/graph/(.+)\.svg", GraphPicture, {"board": board}),
        URLSpec(r"/metrics", Metrics, {"board": board, "token": token}),
        URLSpec(r"/api/task/revoke/(.+)", RevokeRefused),
    ]
    # In place: `flower.app` has imported this very list.
    flower.urls.handlers[:] = ours + [_guard(entry) for entry in flower.urls.handlers]


def reason(error: dict[str, Any] | None) -> str:
    """One line about why a run failed, fit for a page: no password, no more than 300 characters."""
    return one_line(str((error or {}).get("message") or "no reason was recorded"))


def consumers(snapshot: Snapshot) -> dict[str, list[str]]:
    """Which living hosts consume each queue; a queue without any only grows."""
    found: dict[str, list[str]] = {}
    for host in (snapshot.control.value or {"hosts": []})["hosts"]:
        for queue in host["queues"] if host["alive"] else ():
            found.setdefault(queue, []).append(host["name"])
    return found


def _guard(entry: Any) -> URLSpec:
    spec = entry if isinstance(entry, URLSpec) else URLSpec(*entry)
    kind = spec.handler_class
    # Static files are Flower's published scripts and styles: no data of this site.
    if issubclass(kind, BaseHandler) and kind not in _OPEN:
        kind = type(kind.__name__, (Guarded, kind), {})
    return URLSpec(spec.regex.pattern, kind, spec.kwargs, name=spec.name)


def _templates(flowers: Path) -> DictLoader:
    """Flower's templates and ours, and a link to ours in Flower's navigation."""
    found = {path.name: path.read_text(encoding="utf-8") for path in flowers.glob("*.html")}
    found |= {path.name: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.html")}
    found[_NAVBAR] = found[_NAVBAR].replace("</ul>", _LINK, 1)
    return DictLoader(found)
