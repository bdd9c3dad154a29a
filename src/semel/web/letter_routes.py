"""The URLs of dead letters: what each reads from its request, and what it answers."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast, get_args

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from semel.broker.answers import is_explained
from semel.dead_letters.action_run import ActionRun, Asked, Busy, Kind
from semel.dead_letters.catalogue import Catalogue
from semel.dead_letters.decisions import NotReplayable, Selection
from semel.dead_letters.editing import edit_of, form_text, form_value
from semel.dead_letters.index import Show
from semel.dead_letters.operator import Why
from semel.dead_letters.reading import NoLetters, position
from semel.errors import ConfigError, SemelError
from semel.port import TP, RpcError, RpcLost
from semel.web import letter_pages as pages
from semel.web.answer import HEADERS, JSON, Refusal, dumps, prefers_html, respond
from semel.web.budget import Budget
from semel.web.letters import LetterDesk
from semel.web.paths import letters_path, quote_key
from semel.web.reading import FORM, VALUE, body, number, parameters, segments
from semel.web.rights import COOKIE, Rights, local_user
from semel.web.scan import size_of

LETTERS_MAX = 200  # of a page, each with its trace until it is cut
LETTERS_DEFAULT = 50
RATE, WAIT_S = 100.0, 30.0
REASON_CHARACTERS_MAX = 1_000
# Else a browser would send the origin of our own forms as null.
_REFERRER = {"Referrer-Policy": "same-origin"}


class LetterRoutes:
    def __init__(self, desk: LetterDesk, rights: Rights, budget: Budget) -> None:
        self._desk = desk
        self._rights = rights
        self._budget = budget
        self._app = desk.plan.app

    def add_to(self, router: web.UrlDispatcher) -> None:
        root = "/dead-letters/{pipeline}"
        gets: dict[str, Callable[[web.Request], Awaitable[web.Response]]] = {
            "/dead-letters": self.pipelines,
            root: self.groups,
            f"{root}/groups/{{group}}": self.group,
            f"{root}/letters/{{letter}}": self.letter,
            f"{root}/letters/{{letter}}/edit": self.edit,
            f"{root}/audit": self.audit,
            f"{root}/actions": self.actions,
            f"{root}/actions/{{id}}": self.action,
        }
        for path, handler in gets.items():
            router.add_get(path, _answering(handler))
        router.add_post(f"{root}/letters/{{letter}}/diff", _answering(self.diff))
        router.add_post(f"{root}/actions", _answering(self.act))
        router.add_post(f"{root}/actions/{{id}}/stop", _answering(self.stop))

    # -- reading

    async def pipelines(self, request: web.Request) -> web.Response:
        parameters(request, frozenset())
        if prefers_html(request.headers.get("Accept", "")):
            raise web.HTTPFound(letters_path(self._app))
        plan = self._desk.plan
        return await self._respond(
            request, [{"pipeline": plan.app, "topic": plan.dead_letter_topic, "audit": plan.audit_topic}], lambda _: ""
        )

    async def groups(self, request: web.Request) -> web.Response:
        self._own(request)
        asked = parameters(request, {"show", "search", "limit", "page"})
        show = _show(asked.get("show"))
        catalogue = await self._desk.catalogue()
        if (text := asked.get("search")) is not None:
            return await self._search(request, catalogue, text, asked)
        index, progress = catalogue.index, catalogue.progress
        document = {
            "pipeline": self._app,
            "topic": self._desk.plan.dead_letter_topic,
            "show": show,
            "letters": index.letters,
            "open": index.open,
            "done": index.ledger.counts,
            "groups": index.groups(show),
            "other_letters": index.beyond,
            "complete": progress.complete,
            "read": {"done": progress.done, "total": progress.total},
        }
        return await self._respond(request, document, lambda page: pages.groups(page, document))

    async def _search(
        self, request: web.Request, catalogue: Catalogue, text: str, asked: Mapping[str, str]
    ) -> web.Response:
        if not text:
            raise Refusal(400, "search is empty; give what is to stand in key, value, error, trace or a header")
        limit = number("limit", asked.get("limit"), LETTERS_DEFAULT, LETTERS_MAX)
        rows, passed, after = await catalogue.search(text, limit, _page(asked.get("page")))
        document = {"search": text, "letters": rows, "searched": passed, "next": _token(after)}
        return await self._respond(request, document, lambda page: pages.search_results(page, document))

    async def group(self, request: web.Request) -> web.Response:
        fingerprint = self._own(request)[3]
        asked = parameters(request, {"show", "limit", "page"})
        show, limit = _show(asked.get("show")), number("limit", asked.get("limit"), LETTERS_DEFAULT, LETTERS_MAX)
        catalogue = await self._desk.catalogue()
        group = catalogue.index.group(fingerprint)
        if group is None:
            raise Refusal(
                404, f"{self._desk.plan.dead_letter_topic} holds no letter of the group {fingerprint[:1000]!r}",
                dead_letters=letters_path(self._app),
            )  # fmt: skip
        rows, after = await catalogue.rows(fingerprint, limit, done=show == "done", upto=_page(asked.get("page")))
        document = {**group, "show": show, "letters": rows, "next": _token(after)}
        return await self._respond(request, document, lambda page: pages.group(page, document))

    async def letter(self, request: web.Request) -> web.Response:
        place = self._place(request)
        parameters(request, frozenset())
        document = await (await self._desk.catalogue()).document(*place)
        return await self._respond(request, document, lambda page: pages.letter(page, document))

    async def edit(self, request: web.Request) -> web.Response:
        place = self._place(request)
        parameters(request, frozenset())
        catalogue = await self._desk.catalogue()
        letter, value_from = await catalogue.whole(*place)
        document = {
            "position": letter.position,
            "state": catalogue.index.ledger.state(letter),
            "error": letter.text("error"),
            "value_from": value_from or None,
            "text": form_text(letter.record.value),
        }
        return await self._respond(request, document, lambda page: pages.edit(page, document))

    async def audit(self, request: web.Request) -> web.Response:
        self._own(request)
        asked = parameters(request, {"before"})
        before = asked.get("before")
        if before is not None and not (before.isascii() and before.isdigit() and len(before) < 19):
            raise Refusal(400, "before must be an offset")
        entries, after = await (await self._desk.catalogue()).entries(None if before is None else int(before))
        document = {"topic": self._desk.plan.audit_topic, "entries": entries, "next": after}
        return await self._respond(request, document, lambda page: pages.audit(page, document))

    async def actions(self, request: web.Request) -> web.Response:
        self._own(request)
        document = [run.to_json() for run in self._desk.runs.all()]
        return await self._respond(request, document, lambda page: pages.actions(page, document))

    async def action(self, request: web.Request) -> web.Response:
        document = self._run(request).to_json()
        return await self._respond(request, document, lambda page: pages.action(page, document))

    # -- acting

    async def diff(self, request: web.Request) -> web.Response:
        """What an edit would change. It changes nothing."""
        place = self._place(request)
        form, is_form = await self._meant(request)
        letter, _ = await (await self._desk.catalogue()).whole(*place)
        wrong = ""
        try:
            edit = edit_of(self._desk.plan, letter, letter.record.value, _value(form, letter.record.value))
        except NotReplayable as no_value:
            edit, wrong = None, str(no_value)
        except Refusal as unread:
            if not is_form:
                raise
            edit, wrong = None, unread.message
        if edit is None or (is_form and _flag(form, "back")):
            if not is_form:
                raise Refusal(400, wrong)
            # A person goes on with what they wrote.
            again = {"position": letter.position, "error": letter.text("error"), "text": _text(form, "text")}
            refused = {"error": wrong} if wrong else again
            return await self._respond(
                request, refused, lambda page: pages.edit(page, {**again, "wrong": wrong}), status=400 if wrong else 200
            )
        document = {
            "position": letter.position,
            "changes": edit.changes,
            "other_id": edit.other_id or None,
            "text": form_text(edit.after),
        }
        return await self._respond(request, document, lambda page: pages.diff(page, document))

    async def act(self, request: web.Request) -> web.Response:
        self._own(request)
        form, is_form = await self._meant(request)
        action = _text(form, "action")
        if action not in get_args(Kind):
            raise Refusal(400, f"action must be one of {', '.join(get_args(Kind))}")
        actor = self._rights.actor(request, _text(form, "as"), action)
        reason = _text(form, "reason").strip()
        if len(reason) > REASON_CHARACTERS_MAX:
            raise Refusal(400, f"reason is longer than {REASON_CHARACTERS_MAX} characters")
        if not reason and action in ("edit", "drop"):
            raise Refusal(400, "say why, for those who come after: reason is empty")
        catalogue = await self._desk.catalogue()
        selection = self._selection(form, action)
        value = None
        if action == "edit":
            assert selection.at is not None
            partition, offset = selection.at
            letter, _ = await catalogue.whole(TP(self._desk.plan.dead_letter_topic, partition), offset)
            value = _value(form, letter.record.value)
        asked = Asked(
            cast("Kind", action), selection, Why(actor.name, reason), _rate(form), WAIT_S, _flag(form, "keep_going"), value,
            _flag(form, "hold"), _flag(form, "new_id"),
        )  # fmt: skip
        run = self._desk.runs.begin(asked)
        return self._to(run, is_form)

    def _selection(self, asked: Mapping[str, Any], action: str) -> Selection:
        letter, group, everything = _text(asked, "letter"), _text(asked, "group"), _flag(asked, "all")
        if bool(letter) + bool(group) + everything != 1:
            raise Refusal(400, "say which letters: letter, group or all, and one of them")
        if (action == "edit" and not letter) or (action == "archive" and not group):
            raise Refusal(400, f"{action} is of one {'letter' if action == 'edit' else 'group'}")
        at = None
        if letter:
            tp, offset = self._position(letter)
            at = tp.partition, offset
        key = _text(asked, "key")
        return Selection(at, group or None, key.encode() if key else None, again=_flag(asked, "again"))

    async def stop(self, request: web.Request) -> web.Response:
        run = self._run(request)
        asked, is_form = await self._meant(request)
        self._rights.actor(request, _text(asked, "as"), run.asked.action)
        run.stop()
        return self._to(run, is_form)

    def _to(self, run: ActionRun, is_form: bool) -> web.Response:
        """A form is led on to what it began; a program is told where that is."""
        where = f"{letters_path(self._app)}/actions/{run.id}"
        if is_form:
            raise web.HTTPSeeOther(where)
        return web.Response(
            status=202, body=dumps(run.to_json()), content_type=JSON, headers={**HEADERS, "Location": where}
        )

    async def _meant(self, request: web.Request) -> tuple[dict[str, Any], bool]:
        # What is refused for its headers is refused before its body is read.
        if request.content_type != FORM:
            self._rights.check_meant(request, None)
        asked, is_form = await body(request)
        if is_form:
            self._rights.check_meant(request, asked)
        return asked, is_form

    # -- inside

    def _own(self, request: web.Request) -> list[str]:
        """The parts of the path. Refusal 404 where it is of another pipeline."""
        parts = segments(request, None)
        if parts[1] != self._app:
            raise Refusal(404, f"there is no pipeline {parts[1][:200]!r} here; this worker runs {self._app!r}")
        return parts

    def _place(self, request: web.Request) -> tuple[TP, int]:
        return self._position(self._own(request)[3])

    def _position(self, text: str) -> tuple[TP, int]:
        try:
            tp, offset = position(text, self._desk.plan)
        except ConfigError as wrong:
            raise Refusal(400, str(wrong)) from None
        if tp.topic != self._desk.plan.dead_letter_topic:
            raise Refusal(400, "a letter is named by where it stands in the dead-letter topic: PARTITION@OFFSET")
        return tp, offset

    def _run(self, request: web.Request) -> ActionRun:
        id = self._own(request)[3]
        run = self._desk.runs.find(id)
        if run is None:
            raise Refusal(
                404,
                "this worker knows no such action; what was done stands in the audit",
                audit=f"{letters_path(self._app)}/audit",
            )
        return run

    async def _respond(
        self, request: web.Request, document: Any, page: Callable[[pages.Frame], str], *, status: int = 200
    ) -> web.Response:
        rights = self._rights
        cookie, is_new = rights.cookie_of(request)
        frame = pages.Frame(
            self._app, rights.form_token(cookie), rights.closed, local_user() if rights.by_name else None
        )
        response = await self._budget.make(
            lambda: respond(request, document, lambda: page(frame), status=status, headers=_REFERRER), size_of(document)
        )
        if is_new and response.content_type == "text/html":
            path = f"/dead-letters/{quote_key(self._app)}"
            response.set_cookie(COOKIE, cookie, path=path, httponly=True, samesite="Strict")
        return response


def _answering(handler: Callable[[web.Request], Awaitable[web.Response]]) -> Handler:
    """With what can be said of dead letters as refusals."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except NoLetters as missing:
            path = request.rel_url.raw_path
            above = "/".join(path.split("/")[:3])
            # Where there is no topic of them, it would lead back to the same.
            if above == path:
                raise Refusal(404, str(missing)) from missing
            raise Refusal(404, str(missing), dead_letters=above) from missing
        except Busy as busy:
            raise Refusal(409, str(busy), retry_after_s=1) from busy
        except (SemelError, RpcError, RpcLost) as failed:
            if not is_explained(failed) and not isinstance(failed, RpcError):
                raise
            raise Refusal(503, f"the dead letters cannot be read now: {failed}", retry_after_s=1) from failed

    return answer


def _show(text: str | None) -> Show:
    if text is not None and text not in get_args(Show):
        raise Refusal(400, f"show must be one of {', '.join(get_args(Show))}")
    return cast("Show", text or "open")


def _token(upto: Mapping[int, int] | None) -> str | None:
    if upto is None:
        return None
    return base64.urlsafe_b64encode(",".join(f"{p}:{n}" for p, n in upto.items()).encode()).decode()


def _page(token: str | None) -> dict[int, int] | None:
    if token is None:
        return None
    try:
        decoded = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
        pairs = [pair.split(":") for pair in decoded.split(",")]
        return {int(p[:9]): max(0, int(n[:19])) for p, n in pairs}
    except (ValueError, binascii.Error):
        raise Refusal(400, "page: not one that this view gave") from None


def _text(asked: Mapping[str, Any], name: str) -> str:
    value = asked.get(name, "")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refusal(400, f"{name} must be text")
    return value


def _flag(asked: Mapping[str, Any], name: str) -> bool:
    value = asked.get(name, False)
    if value in (True, False):
        return bool(value)
    if value in ("1", "on", "true", ""):
        return value != ""
    raise Refusal(400, f"{name} must be true or false")


def _rate(asked: Mapping[str, Any]) -> float:
    try:
        rate = float(asked.get("rate") or RATE)
    except (TypeError, ValueError):
        rate = -1.0
    if not 0 < rate <= 100_000:
        raise Refusal(400, "rate must be a number of letters a second, above 0")
    return rate


def _value(asked: Mapping[str, Any], before: bytes | None) -> bytes:
    """`value`: a JSON document; or `text`: as the form has it."""
    if (VALUE in asked) == ("text" in asked):
        raise Refusal(400, "give the new value: as value, a JSON document, or as text")
    if VALUE in asked:
        given = asked[VALUE]
        if not isinstance(given, bytes):
            raise Refusal(400, "a form gives the new value as text")
        return msgspec.json.format(given, indent=-1)
    try:
        return form_value(_text(asked, "text"), before)
    except ValueError as wrong:
        raise Refusal(400, str(wrong)) from None
