import static io.grpc.protobuf.StatusProto.fromThrowable;

import com.google.gson.Gson;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.stub.MetadataUtils;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import orders.v1.CreateOrderRequest;
import orders.v1.GetOrderRequest;
import orders.v1.Money;
import orders.v1.Order;
import orders.v1.OrderEvent;
import orders.v1.OrderItem;
import orders.v1.OrderServiceGrpc;
import orders.v1.OrderServiceGrpc.OrderServiceBlockingStub;
import orders.v1.OrderStatus;
import orders.v1.WatchOrderRequest;
import orders.v1.WatchOrderResponse;

/**
 * Goes through everything that a client of Waybill meets: an order, its repeat, a refusal, a watch whose connection
 * breaks, a rate limit, and a health check.
 */
public final class Story {
  private static final String ADDR = System.getenv().getOrDefault("WAYBILL_ADDR", "localhost:50051");
  private static final String WATCH_ADDR = System.getenv().getOrDefault("WAYBILL_WATCH_ADDR", ADDR);
  private static final Optional<String> LIMITED_ADDR = Optional.ofNullable(System.getenv("WAYBILL_LIMITED_ADDR"));
  private static final Optional<String> CA = Optional.ofNullable(System.getenv("WAYBILL_CA"));
  private static final Path SERVICE_CONFIG = Path.of("../../../proto/orders/v1/orders_grpc_service_config.json");

  public static void main(String[] args) throws Exception {
    // One channel is enough for a whole program: calls and streams share it.
    ManagedChannel channel = connect(ADDR);
    healthCheck(channel);
    Order order = createTwice(client(channel));
    badRequest(client(channel));
    close(channel);

    channel = connect(WATCH_ADDR);
    watch(channel, order);
    close(channel);

    if (LIMITED_ADDR.isPresent()) {
      channel = connect(LIMITED_ADDR.get());
      rateLimited(channel, order.getOrderId());
      close(channel);
    } else {
      System.out.println("rate limit: left out, no WAYBILL_LIMITED_ADDR");
    }
    System.out.println("done");
  }

  /** A channel that waits for the gateway and repeats calls as the service config says. */
  private static ManagedChannel connect(String addr) throws IOException {
    @SuppressWarnings("unchecked")
    Map<String, ?> serviceConfig = new Gson().fromJson(Files.readString(SERVICE_CONFIG), Map.class);
    var builder = CA.isPresent()
        ? secured(addr, Path.of(CA.get()), System.getenv("WAYBILL_API_KEY"))
        : Grpc.newChannelBuilder(addr, InsecureChannelCredentials.create());
    return builder.defaultServiceConfig(serviceConfig).build();
  }

  /** For a gateway that speaks TLS, with a certificate of this authority, and asks for an API key. */
  private static ManagedChannelBuilder<?> secured(String addr, Path ca, String key) throws IOException {
    // With TlsChannelCredentials.create() the authorities are those that Java brings along.
    var tls = TlsChannelCredentials.newBuilder().trustManager(ca.toFile()).build();
    var shown = new Metadata();
    shown.put(Metadata.Key.of("x-api-key", Metadata.ASCII_STRING_MARSHALLER), key);
    return Grpc.newChannelBuilder(addr, tls).intercept(MetadataUtils.newAttachHeadersInterceptor(shown));
  }

  private static void close(ManagedChannel channel) throws InterruptedException {
    channel.shutdownNow().awaitTermination(10, TimeUnit.SECONDS);
  }

  /** For calls. Each needs a deadline of its own, so this is made for each; it costs nothing. */
  private static OrderServiceBlockingStub client(ManagedChannel channel) {
    return OrderServiceGrpc.newBlockingStub(channel).withDeadlineAfter(Duration.ofSeconds(10));
  }

  private static void healthCheck(ManagedChannel channel) {
    var request = HealthCheckRequest.newBuilder().setService("orders.v1.OrderService").build();
    var health = HealthGrpc.newBlockingStub(channel).withDeadlineAfter(Duration.ofSeconds(10)).check(request);
    System.out.println("health: " + health.getStatus());
  }

  /** Places an order, and repeats the call as somebody does who got no answer. */
  private static Order createTwice(OrderServiceBlockingStub client) {
    // The request_id is chosen once for each order, and kept until there is an answer.
    CreateOrderRequest request = newOrder("java", UUID.randomUUID().toString(), 2);
    Order first = client.createOrder(request).getOrder();
    System.out.println("created: " + first.getStatus() + " at revision " + first.getRevision());
    Order second = client.createOrder(request).getOrder();
    check(second.getOrderId().equals(first.getOrderId()), first + " and " + second);
    System.out.println("repeated: the same order");
    return first;
  }

  private static CreateOrderRequest newOrder(String customerId, String requestId, int quantity) {
    var price = Money.newBuilder().setCurrencyCode("EUR").setMinorUnits(350);
    var item = OrderItem.newBuilder().setSku("widget").setQuantity(quantity).setUnitPrice(price);
    return CreateOrderRequest.newBuilder()
        .setRequestId(requestId)
        .setCustomerId(customerId)
        .addItems(item)
        .build();
  }

  /** Has an order refused, and learns which fields are wrong. */
  private static void badRequest(OrderServiceBlockingStub client) {
    try {
      client.createOrder(newOrder("", "", 0));
      throw new AssertionError("not refused");
    } catch (StatusRuntimeException e) {
      expect(Status.Code.INVALID_ARGUMENT, e);
      var violations = detail(e, BadRequest.class).orElseThrow(() -> e).getFieldViolationsList();
      violations.forEach(it -> System.out.println("bad request: " + it.getField() + ": " + it.getDescription()));
      var fields = violations.stream().map(BadRequest.FieldViolation::getField).toList();
      check(fields.equals(List.of("customer_id", "items[0].quantity")), fields.toString());
    }
  }

  /** Follows the order to its end, and checks that no event is missing and none comes twice. */
  private static void watch(ManagedChannel channel, Order order) throws InterruptedException {
    var last = new OrderEvent[] {OrderEvent.getDefaultInstance()};
    follow(channel, order.getOrderId(), event -> {
      check(event.getPreviousRevision() == last[0].getOrder().getRevision(), event + " does not follow " + last[0]);
      Order seen = event.getOrder();
      System.out.println("watched: " + seen.getStatus() + " at revision " + seen.getRevision());
      last[0] = event;
    });
    check(last[0].getOrder().getStatus() == OrderStatus.ORDER_STATUS_FULFILLED, "ended with " + last[0]);
  }

  /**
   * Calls {@code see} for each event of the order, once and in order, until the order is finished. When the stream breaks
   * off, it is taken up again after the last event seen.
   */
  private static void follow(ManagedChannel channel, String orderId, Consumer<OrderEvent> see)
      throws InterruptedException {
    long revision = 0;
    while (true) {
      // Streams last long: no deadline.
      var client = OrderServiceGrpc.newBlockingStub(channel);
      var request = WatchOrderRequest.newBuilder().setOrderId(orderId).setAfterRevision(revision).build();
      try {
        Iterator<WatchOrderResponse> responses = client.watchOrder(request);
        while (responses.hasNext()) {
          OrderEvent event = responses.next().getEvent();
          see.accept(event);
          revision = event.getOrder().getRevision();
        }
        return;
      } catch (StatusRuntimeException e) {
        expect(Status.Code.UNAVAILABLE, e);
        System.out.println("cut off (" + e.getStatus().getCode() + "), resuming after revision " + revision);
        Thread.sleep(retryDelay(e).orElse(Duration.ofMillis(100)).toMillis());
      }
    }
  }

  /** Calls until it is told to wait, waits as long as it is told, and is let in. */
  private static void rateLimited(ManagedChannel channel, String orderId) throws InterruptedException {
    var request = GetOrderRequest.newBuilder().setOrderId(orderId).build();
    try {
      for (int call = 0; call < 1000; call++) {
        client(channel).getOrder(request);
      }
      throw new AssertionError("never refused");
    } catch (StatusRuntimeException e) {
      expect(Status.Code.RESOURCE_EXHAUSTED, e);
      String reason = detail(e, ErrorInfo.class).orElseThrow(() -> e).getReason();
      System.out.println("rate limit: " + reason + ", told to wait");
      Thread.sleep(retryDelay(e).orElseThrow(() -> e).toMillis() + 1);
    }
    client(channel).getOrder(request);
    System.out.println("rate limit: let in after that");
  }

  /** A google.rpc detail of an error, if it has one. */
  private static <T extends Message> Optional<T> detail(StatusRuntimeException error, Class<T> kind) {
    for (var packed : fromThrowable(error).getDetailsList()) {
      if (packed.is(kind)) {
        try {
          return Optional.of(packed.unpack(kind));
        } catch (InvalidProtocolBufferException e) {
          throw new IllegalStateException(e);
        }
      }
    }
    return Optional.empty();
  }

  /** How long to wait before the call is repeated, if the gateway says so. */
  private static Optional<Duration> retryDelay(StatusRuntimeException error) {
    return detail(error, RetryInfo.class)
        .map(RetryInfo::getRetryDelay)
        .map(delay -> Duration.ofSeconds(delay.getSeconds(), delay.getNanos()));
  }

  private static void expect(Status.Code code, StatusRuntimeException error) {
    if (error.getStatus().getCode() != code) {
      throw error;
    }
  }

  private static void check(boolean holds, String what) {
    if (!holds) {
      throw new AssertionError(what);
    }
  }
}
