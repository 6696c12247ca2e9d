"""Goes through everything that a client of Waybill meets: an order, its repeat, a refusal, a watch whose connection
breaks, a rate limit, and a health check."""

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from orders.v1 import order_event_pb2, order_pb2, order_service_pb2, order_service_pb2_grpc

ADDR = os.environ.get("WAYBILL_ADDR", "localhost:50051")
WATCH_ADDR = os.environ.get("WAYBILL_WATCH_ADDR", ADDR)
LIMITED_ADDR = os.environ.get("WAYBILL_LIMITED_ADDR")
CA = os.environ.get("WAYBILL_CA")
SERVICE_CONFIG = Path(__file__).parent / "../../../proto/orders/v1/orders_grpc_service_config.json"
# Streams last longer; they have no deadline.
CALL_TIMEOUT_S = 10

T = TypeVar("T", bound=Message)


def main() -> None:
    # One channel is enough for a whole program: calls and streams share it.
    with connect(ADDR) as channel:
        health_check(channel)
        order = create_twice(channel)
        bad_request(channel)
    with connect(WATCH_ADDR) as channel:
        watch(channel, order)
    if LIMITED_ADDR:
        with connect(LIMITED_ADDR) as channel:
            rate_limited(channel, order.order_id)
    else:
        print("rate limit: left out, no WAYBILL_LIMITED_ADDR")
    print("done")


def connect(addr: str) -> grpc.Channel:
    """A channel that waits for the gateway and repeats calls as the service config says."""
    options = [("grpc.service_config", SERVICE_CONFIG.read_text())]
    if CA:
        return grpc.secure_channel(addr, secured(Path(CA), os.environ["WAYBILL_API_KEY"]), options)
    return grpc.insecure_channel(addr, options)


def secured(ca: Path, key: str) -> grpc.ChannelCredentials:
    """For a gateway that speaks TLS, with a certificate of this authority, and asks for an API key."""
    # Without root_certificates grpcio takes the authorities that it brings along.
    tls = grpc.ssl_channel_credentials(root_certificates=ca.read_bytes())
    shown = grpc.metadata_call_credentials(lambda _, show: show((("x-api-key", key),), None))
    return grpc.composite_channel_credentials(tls, shown)


def health_check(channel: grpc.Channel) -> None:
    request = health_pb2.HealthCheckRequest(service="orders.v1.OrderService")
    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=CALL_TIMEOUT_S)
    print("health:", health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def create_twice(channel: grpc.Channel) -> order_pb2.Order:
    """Places an order, and repeats the call as somebody does who got no answer."""
    client = order_service_pb2_grpc.OrderServiceStub(channel)
    # The request_id is chosen once for each order, and kept until there is an answer.
    request = new_order("python", str(uuid.uuid4()))
    first = client.CreateOrder(request, timeout=CALL_TIMEOUT_S).order
    print(f"created: {order_pb2.OrderStatus.Name(first.status)} at revision {first.revision}")
    second = client.CreateOrder(request, timeout=CALL_TIMEOUT_S).order
    assert second.order_id == first.order_id, f"{first} and {second}"
    print("repeated: the same order")
    return first


def new_order(customer_id: str, request_id: str, quantity: int = 2) -> order_service_pb2.CreateOrderRequest:
    price = order_pb2.Money(currency_code="EUR", minor_units=350)
    item = order_pb2.OrderItem(sku="widget", quantity=quantity, unit_price=price)
    return order_service_pb2.CreateOrderRequest(request_id=request_id, customer_id=customer_id, items=[item])


def bad_request(channel: grpc.Channel) -> None:
    """Has an order refused, and learns which fields are wrong."""
    client = order_service_pb2_grpc.OrderServiceStub(channel)
    try:
        client.CreateOrder(new_order(customer_id="", request_id="", quantity=0), timeout=CALL_TIMEOUT_S)
        raise AssertionError("not refused")
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.INVALID_ARGUMENT:
            raise
        violations = detail(error, error_details_pb2.BadRequest).field_violations
    for violation in violations:
        print(f"bad request: {violation.field}: {violation.description}")
    fields = [violation.field for violation in violations]
    assert fields == ["customer_id", "items[0].quantity"], fields


def watch(channel: grpc.Channel, order: order_pb2.Order) -> None:
    """Follows the order to its end, and checks that no event is missing and none comes twice."""
    last = order_event_pb2.OrderEvent()
    for event in follow(order_service_pb2_grpc.OrderServiceStub(channel), order.order_id):
        assert event.previous_revision == last.order.revision, f"{event} does not follow {last}"
        print(f"watched: {order_pb2.OrderStatus.Name(event.order.status)} at revision {event.order.revision}")
        last = event
    assert last.order.status == order_pb2.ORDER_STATUS_FULFILLED, last


def follow(
    client: order_service_pb2_grpc.OrderServiceStub, order_id: str
) -> Iterator[order_event_pb2.OrderEvent]:
    """Each event of the order, once and in order, until the order is finished. When the stream breaks off, it is taken
    up again after the last event seen."""
    revision = 0
    while True:
        request = order_service_pb2.WatchOrderRequest(order_id=order_id, after_revision=revision)
        try:
            for response in client.WatchOrder(request):
                yield response.event
                revision = response.event.order.revision
            return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            print(f"cut off ({error.code().name}), resuming after revision {revision}")
            time.sleep(retry_delay_s(error, otherwise=0.1))


def rate_limited(channel: grpc.Channel, order_id: str) -> None:
    """Calls until it is told to wait, waits as long as it is told, and is let in."""
    client = order_service_pb2_grpc.OrderServiceStub(channel)
    request = order_service_pb2.GetOrderRequest(order_id=order_id)
    try:
        for _ in range(1000):
            client.GetOrder(request, timeout=CALL_TIMEOUT_S)
        raise AssertionError("never refused")
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        print(f"rate limit: {detail(error, error_details_pb2.ErrorInfo).reason}, told to wait")
        delay_s = retry_delay_s(error, otherwise=0)
        assert delay_s > 0, error
        time.sleep(delay_s)
    client.GetOrder(request, timeout=CALL_TIMEOUT_S)
    print("rate limit: let in after that")


def detail(error: grpc.RpcError, kind: type[T]) -> T:
    """A google.rpc detail of an error; an empty one if it has none."""
    found = kind()
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        if packed.Unpack(found):
            break
    return found


def retry_delay_s(error: grpc.RpcError, otherwise: float) -> float:
    """How long to wait before the call is repeated: as long as the gateway says, if it does."""
    info = detail(error, error_details_pb2.RetryInfo)
    return info.retry_delay.ToTimedelta().total_seconds() if info.HasField("retry_delay") else otherwise


if __name__ == "__main__":
    main()
