"""Context variables: each task has its own, and finds those with which the app was imported."""

import contextvars
import decimal


class Contexts:
    """Contexts of tasks. (`decimal.getcontext().prec = 4` in one step rounded the invoices of the next.)"""

    def __init__(self) -> None:
        self._base = contextvars.copy_context()
        # The value of this variable is an object that is changed in place, so copies of a context would share it. It
        # is there only if the app computed with decimals while it was imported.
        found = (value for variable, value in self._base.items() if variable.name == "decimal_context")
        self._decimal: decimal.Context | None = next((context.copy() for context in found), None)

    def fresh(self) -> contextvars.Context:
        """For one task, or one state factory."""
        context = self._base.copy()
        if self._decimal is not None:
            context.run(decimal.setcontext, self._decimal.copy())
        return context
