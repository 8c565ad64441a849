"""A job of two steps: render a receipt as a PDF, then email it. A failed email is retried without a new rendering.

python examples/order_receipts.py
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from underway import Context, Done, RetryPolicy, To, Underway

app = Underway(os.environ.get("UNDERWAY_DATABASE_URL", "embedded:"))


@dataclass
class GenerateReceipt:
    order_id: int


@dataclass
class EmailReceipt:
    receipt_key: str


def generate(cx: Context, order: GenerateReceipt) -> To[EmailReceipt]:
    from reportlab.pdfgen.canvas import Canvas  # imported here, because only workers that render need it

    receipt = Path(f"reports/receipts/{order.order_id}.pdf").absolute()
    receipt.parent.mkdir(parents=True, exist_ok=True)
    page = Canvas(str(receipt))
    page.drawString(72, 720, f"Receipt for order {order.order_id}")
    page.save()
    return To.next(EmailReceipt(receipt_key=str(receipt)))


def email(cx: Context, receipt: EmailReceipt) -> Done[str]:
    if cx.attempt < 3:
        raise ConnectionError("the mail server is not answering")
    return To.done(f"emailed {receipt.receipt_key}")


order_receipt = (
    app.job("order-receipt")
    .step(generate, timeout=timedelta(minutes=5), memory_limit="1 GiB")
    .step(email, retry=RetryPolicy(max_attempts=10, initial_interval=timedelta(milliseconds=200)))
)

if __name__ == "__main__":
    app.migrate()
    run = order_receipt.enqueue(GenerateReceipt(order_id=42))
    app.run(procs=2, until_idle=True)
    for attempt in run.attempts():
        print(f"{attempt.step} {attempt.number}: {attempt.outcome}")
    print("PDFs rendered:", sum(attempt.step == "generate" for attempt in run.attempts()))
    print(f"{run.status()}: {run.result()}")
