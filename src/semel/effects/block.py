"""The block of an effect in the database of its inbox: how it ends where the effect has happened before."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, NoReturn, cast

from semel.errors import EffectError


class AlreadyDone(BaseException):
    """Raised where code uses the connection of an effect that has happened; the `with` that gave it ends there, and swallows it.

    A BaseException, so that an `except Exception` in the block does not go on with an effect that is not to happen again.
    """

    def __init__(self, block: Block) -> None:
        super().__init__(f"{block.name} has happened")
        self.block = block


class Block:
    """`inside`: the code in it runs. `name`: of its effect."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inside = False

    def begin(self) -> None:
        """EffectError where this code runs in the block of another effect: one that has happened ends its block, and with it what
        the same code was to do for the other one, whose claim would commit all the same."""
        outer = _running.get()
        if outer is not None and outer.inside:
            raise EffectError(
                f"{self.name} was begun in the block of {outer.name}: where one of them has happened, what the code does for "
                "the other would be left out and be taken for done; end the first block before, or make both one effect"
            )
        self.inside = True
        _running.set(self)

    def end(self) -> None:
        self.inside = False
        if _running.get() is self:
            _running.set(None)

    def rest(self, error: BaseException | None) -> BaseException | None:
        """What is to be raised of an error that ended it, where its effect has happened."""
        if isinstance(error, AlreadyDone) and error.block is self:
            return None
        if isinstance(error, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", error)
            mine, rest = group.split(lambda one: isinstance(one, AlreadyDone) and one.block is self)
            return group if mine is None else rest
        return error


_running: ContextVar[Block | None] = ContextVar("semel_effect_block", default=None)


class NoConnection:
    """Stands for the connection where the effect has happened: what is to be done with it is not to be done again."""

    def __init__(self, block: Block) -> None:
        self._block = block

    def _used(self) -> NoReturn:
        if self._block.inside:
            raise AlreadyDone(self._block)
        raise EffectError(f"the connection of {self._block.name} was used after its block; use it within")

    def __getattr__(self, name: str) -> Any:
        self._used()

    def __enter__(self) -> NoReturn:
        self._used()

    async def __aenter__(self) -> NoReturn:
        self._used()

    def __exit__(self, *exc: object) -> None: ...

    async def __aexit__(self, *exc: object) -> None: ...
