"""Jobs of an order pipeline, as a shop could have them; `order_fulfilment.yaml` strings them up.

    pilotage run examples/order_fulfilment.yaml --app examples.order_fulfilment:app \
        --payload @examples/order.json

`make demo` runs it with the dashboard. The waiting stands for real work, and the payment provider
times out once, so that there is a retry to see.
"""

from __future__ import annotations

import asyncio
from typing import TypedDict

import msgspec

from pilotage import Fail, JobContext, Pilotage, Retry

app = Pilotage()

PRICES_CENTS = {"tent-2p": 24_900, "stove": 8_900, "rope-60m": 17_900}
STOCK = {"leipzig": {"tent-2p": 4, "stove": 11}, "lyon": {"rope-60m": 7, "stove": 2}}


class Line(msgspec.Struct):
    sku: str
    quantity: int


class Order(msgspec.Struct):
    order_id: str
    customer: str
    country: str
    lines: list[Line]


class Priced(TypedDict):
    order_id: str
    total_cents: int
    items: int


class Charge(msgspec.Struct):
    order_id: str
    customer: str
    amount_cents: int


class Reservation(msgspec.Struct):
    lines: list[Line]
    warehouse: str


async def work(ctx: JobContext, secs: float) -> None:
    """Some work that tells how far it is."""
    rounds = 5
    for i in range(rounds):
        ctx.progress(100 * i / rounds)
        await asyncio.sleep(secs / rounds)


@app.job
async def validate_order(order: Order, ctx: JobContext) -> Priced:
    """What is sold, and for how much. An unknown article will not get known by trying again."""
    await work(ctx, 0.4)
    unknown = [line.sku for line in order.lines if line.sku not in PRICES_CENTS]
    if unknown:
        raise Fail(f"not in the catalogue: {', '.join(unknown)}")
    return Priced(
        order_id=order.order_id,
        total_cents=sum(PRICES_CENTS[line.sku] * line.quantity for line in order.lines),
        items=sum(line.quantity for line in order.lines),
    )


@app.job
async def screen_for_fraud(order: Order, ctx: JobContext) -> dict[str, object]:
    await work(ctx, 0.9)
    return {"score": 0.03 * len(order.lines), "verdict": "accept"}


@app.job
async def reserve_stock(wanted: Reservation, ctx: JobContext) -> dict[str, object]:
    """What of the order this warehouse has; the rest is another one's."""
    await work(ctx, 0.6)
    shelf = STOCK[wanted.warehouse]
    reserved = {
        line.sku: line.quantity for line in wanted.lines if shelf.get(line.sku, 0) >= line.quantity
    }
    return {"warehouse": wanted.warehouse, "reserved": reserved}


@app.job
async def quote_shipping(order: Order, ctx: JobContext) -> dict[str, object]:
    await work(ctx, 0.5)
    return {"carrier": "northpost", "cents": 690 if order.country == "DE" else 1_490}


@app.job(max_attempts=4, retry_initial_delay=0.8, timeout=10)
async def charge_card(charge: Charge, ctx: JobContext) -> dict[str, object]:
    """An answer that is lost is no charge that was not made: every attempt names the same key.

    (`ctx.idempotency_key` tells apart the attempts; it is for what each attempt may do once.)
    """
    key = f"{ctx.run_id}/{ctx.step_ref}"
    await work(ctx, 0.5)
    if ctx.attempt == 1:
        raise Retry("the payment provider did not answer in time", after=0.8)
    return {"charged_cents": charge.amount_cents, "reference": key}


@app.job
async def pick_items(ctx: JobContext) -> dict[str, object]:
    await work(ctx, 0.9)
    return {"parcels": 1, "weight_kg": 7.4}


@app.job
async def print_label(ctx: JobContext) -> dict[str, object]:
    await work(ctx, 0.4)
    return {"tracking": "NP-4711-0815"}


@app.job
async def hand_to_carrier(shipment: dict[str, object], ctx: JobContext) -> dict[str, object]:
    await work(ctx, 0.4)
    return {"tracking": shipment["tracking"], "carrier": shipment["carrier"]}


@app.job
async def write_ledger(entry: dict[str, object], ctx: JobContext) -> dict[str, object]:
    await work(ctx, 0.3)
    return {"entry": f"{entry['order_id']}: {entry['charged_cents']}"}


@app.job
def send_confirmation(mail: dict[str, object]) -> dict[str, object]:
    """A plain function: it runs in a thread."""
    return {"to": mail["customer"], "text": f"Your parcel {mail['tracking']} is on its way."}
