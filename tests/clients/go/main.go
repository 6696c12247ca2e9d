// Command client goes through everything that a client of Waybill meets: an order, its repeat, a refusal, a watch whose
// connection breaks, a rate limit, and a health check.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	ordersv1 "waybill.example/client/gen/orders/v1"
)

const (
	serviceConfig = "../../../proto/orders/v1/orders_grpc_service_config.json"
	// Streams last longer; they have no deadline.
	callTimeout = 10 * time.Second
)

func main() {
	log.SetFlags(0)
	var err error
	switch ctx := context.Background(); strings.Join(os.Args[1:], " ") {
	case "":
		err = story(ctx)
	case "outage":
		err = outage(ctx)
	case "outage --impatient":
		err = outage(ctx, grpc.WithDefaultCallOptions(grpc.WaitForReady(false)))
	default:
		err = errors.New("usage: client [outage [--impatient]]")
	}
	if err != nil {
		log.Fatal(err)
	}
}

func story(ctx context.Context) error {
	conn, err := dial(env("WAYBILL_ADDR", "localhost:50051"))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := ordersv1.NewOrderServiceClient(conn)

	if err := healthCheck(ctx, conn); err != nil {
		return fmt.Errorf("health: %w", err)
	}
	order, err := createTwice(ctx, client)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if err := badRequest(ctx, client); err != nil {
		return fmt.Errorf("bad request: %w", err)
	}
	if err := watch(ctx, order); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	if err := rateLimited(ctx, order.OrderId); err != nil {
		return fmt.Errorf("rate limit: %w", err)
	}
	fmt.Println("done")
	return nil
}

// dial makes a connection that waits for the gateway and repeats calls as the service config says. One is enough for a
// whole program: calls and streams share it.
func dial(addr string, further ...grpc.DialOption) (*grpc.ClientConn, error) {
	config, err := os.ReadFile(serviceConfig)
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(config)),
	}
	if ca := os.Getenv("WAYBILL_CA"); ca != "" {
		secure, err := secured(ca, os.Getenv("WAYBILL_API_KEY"))
		if err != nil {
			return nil, err
		}
		options = append(options, secure...)
	}
	return grpc.NewClient(addr, append(options, further...)...)
}

// secured is for a gateway that speaks TLS, with a certificate of this authority, and asks for an API key.
func secured(ca, key string) ([]grpc.DialOption, error) {
	// With credentials.NewTLS(nil) the authorities are those of the system.
	transport, err := credentials.NewClientTLSFromFile(ca, "")
	if err != nil {
		return nil, err
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithPerRPCCredentials(apiKey(key)),
	}, nil
}

// apiKey goes with every call.
type apiKey string

func (key apiKey) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"x-api-key": string(key)}, nil
}

// RequireTransportSecurity keeps it from being sent in the clear.
func (key apiKey) RequireTransportSecurity() bool { return true }

func healthCheck(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	health, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: "orders.v1.OrderService"})
	if err != nil {
		return err
	}
	fmt.Println("health:", health.Status)
	return nil
}

// createTwice places an order, and repeats the call as somebody does who got no answer.
func createTwice(ctx context.Context, client ordersv1.OrderServiceClient) (*ordersv1.Order, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// Chosen once for each order, and kept until there is an answer.
	request := newOrder("go", fmt.Sprintf("go-%d", time.Now().UnixNano()))
	first, err := client.CreateOrder(ctx, request)
	if err != nil {
		return nil, err
	}
	fmt.Printf("created: %s at revision %d\n", first.Order.Status, first.Order.Revision)
	second, err := client.CreateOrder(ctx, request)
	if err != nil {
		return nil, err
	}
	if second.Order.OrderId != first.Order.OrderId {
		return nil, fmt.Errorf("%s and %s", first.Order.OrderId, second.Order.OrderId)
	}
	fmt.Println("repeated: the same order")
	return first.Order, nil
}

func newOrder(customerID, requestID string) *ordersv1.CreateOrderRequest {
	return &ordersv1.CreateOrderRequest{
		RequestId:  requestID,
		CustomerId: customerID,
		Items: []*ordersv1.OrderItem{{
			Sku:       "widget",
			Quantity:  2,
			UnitPrice: &ordersv1.Money{CurrencyCode: "EUR", MinorUnits: 350},
		}},
	}
}

// badRequest has an order refused, and learns which fields are wrong.
func badRequest(ctx context.Context, client ordersv1.OrderServiceClient) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	request := newOrder("", "")
	request.Items[0].Quantity = 0
	_, err := client.CreateOrder(ctx, request)
	if status.Code(err) != codes.InvalidArgument {
		return fmt.Errorf("not refused: %w", err)
	}
	violations := detail[*errdetails.BadRequest](err).GetFieldViolations()
	for _, violation := range violations {
		fmt.Printf("bad request: %s: %s\n", violation.Field, violation.Description)
	}
	if len(violations) != 2 || violations[0].Field != "customer_id" || violations[1].Field != "items[0].quantity" {
		return fmt.Errorf("other fields: %v", violations)
	}
	return nil
}

// watch follows the order to its end, and checks that no event is missing and none comes twice.
func watch(ctx context.Context, order *ordersv1.Order) error {
	conn, err := dial(env("WAYBILL_WATCH_ADDR", env("WAYBILL_ADDR", "localhost:50051")))
	if err != nil {
		return err
	}
	defer conn.Close()
	var last *ordersv1.OrderEvent
	err = follow(ctx, ordersv1.NewOrderServiceClient(conn), order.OrderId, func(event *ordersv1.OrderEvent) error {
		if event.PreviousRevision != last.GetOrder().GetRevision() {
			return fmt.Errorf("%v does not follow %v", event, last)
		}
		fmt.Printf("watched: %s at revision %d\n", event.Order.Status, event.Order.Revision)
		last = event
		return nil
	})
	if err == nil && last.GetOrder().GetStatus() != ordersv1.OrderStatus_ORDER_STATUS_FULFILLED {
		err = fmt.Errorf("ended with %v", last)
	}
	return err
}

// follow calls see for each event of the order, once and in order, until the order is finished. When the stream breaks
// off, it is taken up again after the last event seen.
func follow(ctx context.Context, client ordersv1.OrderServiceClient, orderID string, see func(*ordersv1.OrderEvent) error) error {
	var revision uint64
	for {
		stream, err := client.WatchOrder(ctx, &ordersv1.WatchOrderRequest{OrderId: orderID, AfterRevision: revision})
		for err == nil {
			var response *ordersv1.WatchOrderResponse
			if response, err = stream.Recv(); err != nil {
				break
			}
			if err := see(response.Event); err != nil {
				return err
			}
			revision = response.Event.Order.Revision
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if status.Code(err) != codes.Unavailable {
			return err
		}
		fmt.Printf("cut off (%s), resuming after revision %d\n", status.Code(err), revision)
		if err := sleep(ctx, retryDelay(err, 100*time.Millisecond)); err != nil {
			return err
		}
	}
}

// rateLimited calls until it is told to wait, waits as long as it is told, and is let in.
func rateLimited(ctx context.Context, orderID string) error {
	addr := os.Getenv("WAYBILL_LIMITED_ADDR")
	if addr == "" {
		fmt.Println("rate limit: left out, no WAYBILL_LIMITED_ADDR")
		return nil
	}
	conn, err := dial(addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := ordersv1.NewOrderServiceClient(conn)
	for range 1000 {
		_, err = client.GetOrder(ctx, &ordersv1.GetOrderRequest{OrderId: orderID})
		if err != nil {
			break
		}
	}
	reason := detail[*errdetails.ErrorInfo](err).GetReason()
	if status.Code(err) != codes.ResourceExhausted || reason != "RATE_LIMITED" {
		return fmt.Errorf("not refused: %w", err)
	}
	delay := retryDelay(err, 0)
	if delay == 0 {
		return fmt.Errorf("not told how long to wait: %w", err)
	}
	fmt.Printf("rate limit: %s, told to wait\n", reason)
	if err := sleep(ctx, delay); err != nil {
		return err
	}
	if _, err = client.GetOrder(ctx, &ordersv1.GetOrderRequest{OrderId: orderID}); err != nil {
		return err
	}
	fmt.Println("rate limit: let in after that")
	return nil
}

// detail finds a google.rpc detail of an error; nil if it has none.
func detail[T any](err error) (found T) {
	for _, any := range status.Convert(err).Details() {
		if detail, ok := any.(T); ok {
			return detail
		}
	}
	return found
}

// retryDelay tells how long to wait before the call is repeated: as long as the gateway says, if it does.
func retryDelay(err error, otherwise time.Duration) time.Duration {
	if info := detail[*errdetails.RetryInfo](err); info != nil {
		return info.RetryDelay.AsDuration()
	}
	return otherwise
}

func sleep(ctx context.Context, delay time.Duration) error {
	select {
	case <-time.After(delay):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
