"""What an agent's source shows of it."""

from __future__ import annotations

import gc
import weakref
from types import FunctionType
from typing import Any, cast

from semel.callables.shape import shape_of


def test_a_function_that_was_looked_at_is_not_kept_with_what_it_closes_over() -> None:
    class Held:
        pass

    def declared(held: Any) -> FunctionType:
        async def agent(stream: Any) -> Any:
            async for event in stream:
                yield held, event

        return cast("FunctionType", agent)

    held = Held()
    assert shape_of(declared(held), "stream") is not None
    gone = weakref.ref(held)
    del held
    gc.collect()
    assert gone() is None
