// What every client of Waybill meets: an order, its repeat, a refusal, a watch whose connection breaks, a rate limit, and
// a health check. The same in Node and in a browser: only the transport differs.

import { create } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb";
import { Health, HealthCheckResponse_ServingStatus as ServingStatus } from "../gen/health/v1/health_pb";
import type { OrderEvent } from "../gen/orders/v1/order_event_pb";
import { type Order, OrderStatus } from "../gen/orders/v1/order_pb";
import { type CreateOrderRequest, CreateOrderRequestSchema, OrderService } from "../gen/orders/v1/order_service_pb";

type Orders = Client<typeof OrderService>;

// Streams last longer; they have no deadline.
const call = { timeoutMs: 10_000 };

/** Goes through it all. `connect` makes the transport for a gateway. */
export async function story(
  connect: (addr: string) => Transport,
  { addr, watchAddr, limitedAddr }: { addr: string; watchAddr: string; limitedAddr: string | undefined },
): Promise<void> {
  // One transport is enough for a whole program: calls and streams share it.
  const transport = connect(addr);
  await healthCheck(transport);
  const orders = createClient(OrderService, transport);
  const order = await createTwice(orders);
  await badRequest(orders);
  await watch(createClient(OrderService, connect(watchAddr)), order);
  if (limitedAddr) {
    await rateLimited(createClient(OrderService, connect(limitedAddr)), order.orderId);
  } else {
    console.log("rate limit: left out, no WAYBILL_LIMITED_ADDR");
  }
  console.log("done");
}

async function healthCheck(transport: Transport): Promise<void> {
  const health = await createClient(Health, transport).check({ service: OrderService.typeName }, call);
  console.log(`health: ${ServingStatus[health.status]}`);
}

/** Places an order, and repeats the call as somebody does who got no answer. */
async function createTwice(orders: Orders): Promise<Order> {
  // The request_id is chosen once for each order, and kept until there is an answer.
  const request = newOrder("typescript", crypto.randomUUID());
  const first = (await orders.createOrder(request, call)).order!;
  console.log(`created: ${OrderStatus[first.status]} at revision ${first.revision}`);
  const second = (await orders.createOrder(request, call)).order!;
  check(second.orderId === first.orderId, `${second.orderId} is not ${first.orderId}`);
  console.log("repeated: the same order");
  return first;
}

function newOrder(customerId: string, requestId: string, quantity = 2): CreateOrderRequest {
  const unitPrice = { currencyCode: "EUR", minorUnits: 350n };
  return create(CreateOrderRequestSchema, { requestId, customerId, items: [{ sku: "widget", quantity, unitPrice }] });
}

/** Has an order refused, and learns which fields are wrong. */
async function badRequest(orders: Orders): Promise<void> {
  const error = await refusal(orders.createOrder(newOrder("", "", 0), call));
  check(error.code === Code.InvalidArgument, error.message);
  const violations = error.findDetails(BadRequestSchema).flatMap((detail) => detail.fieldViolations);
  for (const { field, description } of violations) {
    console.log(`bad request: ${field}: ${description}`);
  }
  const fields = violations.map(({ field }) => field).join();
  check(fields === "customer_id,items[0].quantity", fields);
}

/** Follows the order to its end, and checks that no event is missing and none comes twice. */
async function watch(orders: Orders, { orderId }: Order): Promise<void> {
  let last: Order | undefined;
  for await (const { order, previousRevision } of follow(orders, orderId)) {
    check(previousRevision === (last?.revision ?? 0n), `${previousRevision} is not ${last?.revision}`);
    console.log(`watched: ${OrderStatus[order!.status]} at revision ${order!.revision}`);
    last = order;
  }
  check(last?.status === OrderStatus.FULFILLED, `ended with ${last?.status}`);
}

/**
 * Each event of the order, once and in order, until the order is finished. When the stream breaks off, it is taken up
 * again after the last event seen.
 */
async function* follow(orders: Orders, orderId: string): AsyncGenerator<OrderEvent> {
  let afterRevision = 0n;
  for (;;) {
    try {
      for await (const { event } of orders.watchOrder({ orderId, afterRevision })) {
        yield event!;
        afterRevision = event!.order!.revision;
      }
      return;
    } catch (reason) {
      const error = ConnectError.from(reason);
      if (!isCutOff(error)) {
        throw error;
      }
      console.log(`cut off (${Code[error.code]}), resuming after revision ${afterRevision}`);
      await sleep(retryDelayMs(error) ?? 100);
    }
  }
}

/** Whether the gateway is away or stopping, or the connection broke. */
function isCutOff(error: ConnectError): boolean {
  // Node and each browser have a code of their own for a connection that breaks. What the gateway says has a reason.
  const broken = [Code.Canceled, Code.Aborted, Code.Unknown, Code.Internal].includes(error.code);
  return error.code === Code.Unavailable || (broken && error.findDetails(ErrorInfoSchema).length === 0);
}

/** Calls until it is told to wait, waits as long as it is told, and is let in. */
async function rateLimited(orders: Orders, orderId: string): Promise<void> {
  const error = await refusal(
    (async () => {
      for (let i = 0; i < 1000; i++) {
        await orders.getOrder({ orderId }, call);
      }
    })(),
  );
  check(error.code === Code.ResourceExhausted, error.message);
  const reason = error.findDetails(ErrorInfoSchema)[0]?.reason;
  const delayMs = retryDelayMs(error);
  check(delayMs !== undefined, "not told how long to wait");
  console.log(`rate limit: ${reason}, told to wait`);
  await sleep(delayMs!);
  await orders.getOrder({ orderId }, call);
  console.log("rate limit: let in after that");
}

/** How long to wait before the call is repeated, if the gateway says so. */
function retryDelayMs(error: ConnectError): number | undefined {
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return delay && Math.ceil(durationMs(delay));
}

async function refusal(answer: Promise<unknown>): Promise<ConnectError> {
  return answer.then(
    () => Promise.reject(new Error("not refused")),
    (reason) => ConnectError.from(reason),
  );
}

function check(holds: boolean, what: string): void {
  if (!holds) {
    throw new Error(what);
  }
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
