"""A shop with a long past: nearly everything in its tables is over, and is to be left alone by who asks about today."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg


@dataclass(frozen=True)
class Past:
    """How much of it. An order has two reservations, and every twentieth order is still held."""

    products: int
    orders: int
    events: int


FULL = Past(products=100_000, orders=500_000, events=1_000_000)
SLICE = Past(products=20_000, orders=100_000, events=50_000)

# One order in 20 is held; one in 40 is confirmed and on its way; the rest is over.
_ORDERS = """
    INSERT INTO orders (order_id, request_hash, customer_id, zone, status, lines, dropoff, hold_seconds, timeline,
        created_at)
    SELECT 'o-' || n, md5(n::text), 'c-' || n % 1000, 'zone-' || n % 10,
        CASE WHEN n % 20 = 0 THEN 'RESERVED' WHEN n % 40 = 1 THEN 'CONFIRMED' WHEN n % 20 IN (16, 17) THEN 'CANCELLED'
            WHEN n % 20 IN (18, 19) THEN 'EXPIRED' ELSE 'DELIVERED' END,
        jsonb_build_array(jsonb_build_object('sku', 'sku-' || sku, 'quantity', 2),
            jsonb_build_object('sku', 'sku-' || other, 'quantity', 1)),
        '{"lat": 52.5, "lng": 13.4}', 900,
        jsonb_build_array(jsonb_build_object('at', now(), 'what', 'reserved')),
        now() - make_interval(secs => $1::int - n)
    FROM generate_series(1, $1) n,
        LATERAL (SELECT (n / 20 * 13 + n * 7) % $2 AS sku) a, LATERAL (SELECT (sku + $2 / 2) % $2 AS other) b
"""
# One held order in a hundred is overdue.
_RESERVATIONS = """
    INSERT INTO reservations (order_id, sku, quantity, status, expires_at, closed_at)
    SELECT order_id, line->>'sku', (line->>'quantity')::int,
        CASE status WHEN 'RESERVED' THEN 'ACTIVE' WHEN 'EXPIRED' THEN 'EXPIRED' WHEN 'CANCELLED' THEN 'RELEASED'
            ELSE 'COMMITTED' END,
        CASE WHEN status <> 'RESERVED' THEN created_at + interval '15 minutes'
            WHEN abs(hashtext(order_id)) % 100 = 0 THEN now() - interval '1 hour' ELSE now() + interval '1 day' END,
        CASE WHEN status <> 'RESERVED' THEN now() END
    FROM orders, jsonb_array_elements(lines) line
"""
_PRODUCTS = """
    INSERT INTO products (sku, name, stock, ledger_stock)
    SELECT 'sku-' || n, 'Product ' || n, 1000, 1000 FROM generate_series(0, $1 - 1) n
"""
_LEDGER = """
    INSERT INTO stock_ledger (sku, movement, quantity, before, after, actor, order_id)
    SELECT sku, 'committed', -quantity, 1000 + quantity, 1000, 'order', order_id
    FROM reservations WHERE status = 'COMMITTED'
"""
_RESERVED = """
    UPDATE products p SET reserved = held.quantity
    FROM (SELECT sku, sum(quantity) AS quantity FROM reservations WHERE status = 'ACTIVE' GROUP BY sku) held
    WHERE held.sku = p.sku
"""
_DELIVERIES = """
    INSERT INTO deliveries (delivery_id, order_id, zone, status, courier_id, promised_at, dropoff, timeline)
    SELECT 'd-' || order_id, order_id, zone, stage,
        CASE WHEN stage <> 'PENDING' THEN 'courier-' || abs(hashtext(order_id)) % 1000 END,
        created_at + interval '1 hour', dropoff, timeline
    FROM orders, LATERAL (SELECT CASE WHEN status = 'DELIVERED' THEN 'DELIVERED'
        ELSE (ARRAY['PENDING', 'ASSIGNED', 'PICKED_UP'])[1 + abs(hashtext(order_id)) % 3] END AS stage) s
    WHERE status IN ('CONFIRMED', 'DELIVERED')
"""
_COURIERS = """
    INSERT INTO couriers (courier_id, zone, lat, lng, capacity, online)
    SELECT 'courier-' || n, 'zone-' || n % 10, 52.5, 13.4, 1000, true FROM generate_series(0, 999) n
"""
_ASSIGNMENTS = """
    INSERT INTO assignments (delivery_id, courier_id, source, live, outcome)
    SELECT delivery_id, courier_id, 'auto', status <> 'DELIVERED',
        CASE WHEN status = 'DELIVERED' THEN 'delivered' END
    FROM deliveries WHERE courier_id IS NOT NULL
"""
_LOADS = """
    UPDATE couriers c SET load = held.deliveries
    FROM (SELECT courier_id, count(*) AS deliveries FROM assignments WHERE live GROUP BY courier_id) held
    WHERE held.courier_id = c.courier_id
"""
_WEBHOOK = "INSERT INTO outbox_endpoints (name, kind, url) VALUES ('shop', 'webhook', 'http://127.0.0.1:9/')"
_EVENTS = """
    INSERT INTO outbox_events (event_id, event_type, subject, lane, shard, data, occurred_at)
    SELECT gen_random_uuid(), 'waybill.order.reserved', 'o-' || n, 'order:o-' || n, n % 8,
        jsonb_build_object('orderId', 'o-' || n, 'status', 'RESERVED', 'customerId', 'c-1'), now() - interval '1 day'
    FROM generate_series(1, $1) n
"""
# Each event went to the webhook: nearly all of them are delivered, 200 are ready to go and 100 failed.
_FINISHED = """
    INSERT INTO outbox_finished (position, endpoint_id, status, duration_ms, finished_at)
    SELECT position, endpoint_id, 'DELIVERED', 3, occurred_at
    FROM outbox_events, outbox_endpoints WHERE name = 'shop' AND position > 300
"""
_MESSAGES = """
    INSERT INTO outbox_messages (shard, endpoint_id, position, event_position, lane)
    SELECT shard, endpoint_id, position, position, lane
    FROM outbox_events, outbox_endpoints WHERE name = 'shop' AND position <= 200
"""
_FAILURES = """
    INSERT INTO outbox_failures (endpoint_id, position, event_position, shard, lane, event_type, status, attempts,
        error_class, last_error, fingerprint, workflow_started_at)
    SELECT endpoint_id, position, position, shard, lane, event_type,
        CASE WHEN position > 300 THEN 'DELIVERED' WHEN position % 4 = 0 THEN 'RETRYING' ELSE 'FAILED' END, 3, 'event',
        '422', 'f-' || position % 7, CASE WHEN position <= 300 AND position % 4 = 0 THEN now() END
    FROM outbox_events, outbox_endpoints WHERE name = 'shop' AND (position > 200 AND position <= 300
        OR position % 20 = 0)
"""
_ATTEMPTS = """
    INSERT INTO outbox_attempts (endpoint_id, position, event_position, outcome, error_class, error)
    SELECT endpoint_id, position, position, 'failed', 'event', '422' FROM outbox_failures, generate_series(1, attempts)
"""
_NOTIFICATIONS = """
    INSERT INTO notifications (event_id, channel, recipient, message_id, sent_at)
    SELECT event_id, 'email', 'c-' || position || '@customer.example', '<' || event_id || '@shop.example>', occurred_at
    FROM outbox_events WHERE position % 3 = 0
"""
# Ids that begin with the time; one round and one snapshot a minute.
_ROUNDS = """
    INSERT INTO assignment_rounds (round_id, zone, started_at, finished_at, inputs, pairs, conflicts)
    SELECT regexp_replace(lpad(to_hex(CAST(extract(epoch FROM at) * 1000 AS bigint)), 12, '0'), '^(.{8})', '\\1-')
        || '-7000-8000-000000000000', 'zone-' || n % 10, at, at, '{}', '[]', 0
    FROM generate_series(1, $1) n, LATERAL (SELECT now() - make_interval(mins => $1::int - n) AS at) t
"""
_SNAPSHOTS = """
    INSERT INTO snapshots (snapshot_id, status, content, created_at)
    SELECT round_id, 'DONE', '{}', finished_at FROM assignment_rounds
"""
_ACTIONS = """
    INSERT INTO admin_actions (actor, action, target, reason)
    SELECT 'admin', 'product.put', 'product:sku-' || n, 'count' FROM generate_series(1, $1) n
"""
_COUNTS = """
    UPDATE status_counts c SET total = counted.total
    FROM (SELECT 'orders' AS noun, status, count(*) AS total FROM orders GROUP BY status
        UNION ALL SELECT 'reservations', status, count(*) FROM reservations GROUP BY status) counted
    WHERE c.noun = counted.noun AND c.status = counted.status AND c.bucket = 0
"""


async def load(superuser_url: str, past: Past) -> None:
    """Fill an empty, migrated database with it, without the triggers that look at each row, and ANALYZE."""
    connection = await asyncpg.connect(superuser_url)
    try:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(_PRODUCTS, past.products)
        await connection.execute(_ORDERS, past.orders, past.products)
        for statement in (_RESERVATIONS, _LEDGER, _RESERVED, _DELIVERIES, _COURIERS, _ASSIGNMENTS, _LOADS, _WEBHOOK):
            await connection.execute(statement)
        await connection.execute(_EVENTS, past.events)
        await connection.execute(_ROUNDS, past.orders // 5)
        for statement in (_FINISHED, _MESSAGES, _FAILURES, _ATTEMPTS, _NOTIFICATIONS, _SNAPSHOTS, _COUNTS):
            await connection.execute(statement)
        await connection.execute(_ACTIONS, past.orders // 5)
        await connection.execute("VACUUM (ANALYZE)")
    finally:
        await connection.close()
