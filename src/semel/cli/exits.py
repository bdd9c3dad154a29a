"""Exit codes of `semel`, the only place that knows them."""

from __future__ import annotations

from semel.broker.answers import needs_a_person
from semel.codes import LOGIN
from semel.display.printing import Unwritten
from semel.errors import ConfigError, DeclarationError, InboxUnreachable, InstanceTaken, PipelineHalted, SemelError
from semel.local.errors import NotReady
from semel.port import RpcError, RpcLost

OK = 0
FINDING = 1  # a finding or a refusal
USAGE = 2  # usage or configuration
UNREACHABLE = 3  # the broker, the inbox, or the worker asked, cannot be reached, or refuses the login
INSTANCE_TAKEN = 4
UNPROVABLE = 5
UNWRITTEN = 6  # the work is done, and what is to be said of it cannot be written
HALTED = 7  # an agent's events failed alike for longer than the worker was to wait
INTERRUPTED = 130


class Unreachable(SemelError):
    """Nobody answers where a worker was looked for."""


class Unjudged(SemelError):
    """Nothing is proven, and nothing is found: there is nothing to judge, or no way to."""


def code_of(error: BaseException) -> int | None:
    """The exit code an error stands for; None where it is a defect, whose traceback should be seen."""
    match error:
        case ConfigError() | DeclarationError():
            return USAGE
        case Unwritten():
            return UNWRITTEN
        case Unjudged():
            return UNPROVABLE
        case InstanceTaken():
            return INSTANCE_TAKEN
        case PipelineHalted():
            return HALTED
        case Unreachable() | InboxUnreachable() | RpcLost() | NotReady():
            return UNREACHABLE
        case RpcError() if error.code in LOGIN:
            return UNREACHABLE
        case RpcError() if needs_a_person(error):
            return FINDING
        case SemelError():
            return FINDING
        case KeyboardInterrupt():
            return INTERRUPTED
        case _:
            return None


def code_after(failure: BaseException | None) -> int:
    """The exit code of work that ended with `failure`, which was said already; None: in order."""
    if failure is None:
        return OK
    code = code_of(failure)
    return FINDING if code is None else code
