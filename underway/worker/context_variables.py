"""Context variables: each task has its own context, a copy of the one in which the app was imported."""

import contextvars
import decimal


class Contexts:
    """Creates the contexts of tasks. (`decimal.getcontext().prec = 4` in one step rounded the invoices of the next.)"""

    def __init__(self) -> None:
        self._base = contextvars.copy_context()
        # The value of this variable is a mutable object, which copies of a context would share. The variable is set
        # only if the app used decimals during its import.
        found = (value for variable, value in self._base.items() if variable.name == "decimal_context")
        self._decimal: decimal.Context | None = next((context.copy() for context in found), None)

    def fresh(self) -> contextvars.Context:
        """A new context for one task or one state factory."""
        context = self._base.copy()
        if self._decimal is not None:
            context.run(decimal.setcontext, self._decimal.copy())
        return context
