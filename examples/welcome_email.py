"""A job of one step: send a welcome email.

python examples/welcome_email.py
"""

import os
from dataclasses import dataclass

from underway import Context, Done, To, Underway

app = Underway(os.environ.get("UNDERWAY_DATABASE_URL", "embedded:"))


@dataclass
class WelcomeEmail:
    user_id: int
    email: str
    name: str


def send(cx: Context, user: WelcomeEmail) -> Done[str]:
    # A step may run twice if a machine dies at the wrong moment. A mail service that gets the run's ID as its
    # idempotency key sends the email only once.
    cx.log.info("to %s: Welcome, %s! (idempotency key %s)", user.email, user.name, cx.run_id)
    return To.done(f"welcomed {user.name}")


welcome_email = app.job("welcome-email").step(send)

if __name__ == "__main__":
    app.migrate()
    run = welcome_email.enqueue(WelcomeEmail(user_id=1, email="ferris@example.com", name="Ferris"))
    app.run(procs=2, until_idle=True)
    print(f"{run.status()}: {run.result()}")
