// Command bare is the smallest handler of CreateOrder in Go: decode, publish to JetStream, await the acknowledgement,
// answer. As bare-event it publishes what the order log needs of a message.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	ordersv1 "waybill.example/bare/gen/orders/v1"
)

const (
	created = "GO.created"
	// As many bytes as the gateway's event has more than the request.
	eventBytesMore = 330
)

func main() {
	log.SetFlags(0)
	if err := serve(); err != nil {
		log.Fatal(err)
	}
}

func serve() error {
	if len(os.Args) != 3 {
		return errors.New("usage: bare (bare|bare-event) NATS_URL")
	}
	nc, err := nats.Connect(os.Args[2])
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	handler := &bare{js: js, wholeEvent: os.Args[1] == "bare-event"}
	if _, err := js.CreateStream(context.Background(), handler.stream()); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	server := grpc.NewServer()
	ordersv1.RegisterOrderServiceServer(server, handler)
	return server.Serve(listener)
}

type bare struct {
	ordersv1.UnimplementedOrderServiceServer
	js         jetstream.JetStream
	wholeEvent bool
}

func (b *bare) stream() jetstream.StreamConfig {
	if !b.wholeEvent {
		return jetstream.StreamConfig{Name: "GO", Subjects: []string{created}}
	}
	return jetstream.StreamConfig{
		Name:        "GO_EVENTS",
		Subjects:    []string{"GO_EVENTS.>"},
		AllowDirect: true,
		RePublish:   &jetstream.RePublish{Source: "GO_EVENTS.>", Destination: "live.GO_EVENTS.>"},
	}
}

// CreateOrder answers once the message is durable.
func (b *bare) CreateOrder(
	ctx context.Context, request *ordersv1.CreateOrderRequest,
) (*ordersv1.CreateOrderResponse, error) {
	payload, err := proto.Marshal(request)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	message := &nats.Msg{Subject: created, Data: payload}
	if b.wholeEvent {
		message = event(payload)
	}
	ack, err := b.js.PublishMsg(ctx, message)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &ordersv1.CreateOrderResponse{Order: &ordersv1.Order{Revision: ack.Sequence}}, nil
}

// event has a subject of its own and the headers that the order log writes.
func event(payload []byte) *nats.Msg {
	id := nuid.Next()
	order := "00.vmsiot3cpmafjant." + id
	return &nats.Msg{
		Subject: "GO_EVENTS.created." + order,
		Header: nats.Header{
			"ce-specversion":                      {"1.0"},
			"ce-id":                               {id},
			"ce-type":                             {"orders.v1.OrderCreated"},
			"ce-source":                           {"waybill-gateway"},
			"ce-time":                             {"2026-01-01T00:00:00.000000000Z"},
			"content-type":                        {"application/protobuf"},
			"traceparent":                         {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
			"Nats-Expected-Last-Subject-Sequence": {"0"},
			"Nats-Expected-Last-Subject-Sequence-Subject": {"GO_EVENTS.*." + order},
		},
		Data: append(payload, make([]byte, eventBytesMore)...),
	}
}
