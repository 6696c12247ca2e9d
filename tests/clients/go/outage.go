package main

import (
	"context"
	"fmt"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	ordersv1 "waybill.example/client/gen/orders/v1"
)

const callers = 8

// outage places orders until it is told to end (SIGTERM), whatever becomes of the gateway meanwhile. The service config
// repeats calls; what it cannot catch, such as an answer that broke off after its first bytes, is repeated here, and counted.
func outage(ctx context.Context, options ...grpc.DialOption) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	var attempts attemptCounter
	conn, err := dial(env("WAYBILL_ADDR", "localhost:50051"), append(options, grpc.WithStatsHandler(&attempts))...)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := ordersv1.NewOrderServiceClient(conn)

	var orders, failed atomic.Int64
	var all sync.WaitGroup
	fmt.Println("calling")
	for caller := range callers {
		all.Go(func() {
			for place := 0; ctx.Err() == nil; place++ {
				// With a request_id of its own, so that the repeat of a call that was answered to nobody makes no second order.
				request := newOrder("outage", fmt.Sprintf("outage-%d-%d", caller, place))
				// An order that has been asked for is not given up.
				for {
					_, err := client.CreateOrder(context.WithoutCancel(ctx), request)
					if err == nil {
						break
					}
					failed.Add(1)
					fmt.Println("failed:", err)
					time.Sleep(100 * time.Millisecond)
				}
				if count := orders.Add(1); count%50 == 1 {
					fmt.Printf("placed: %d\n", count)
				}
			}
		})
	}
	all.Wait()
	fmt.Printf("orders: %d, attempts: %d, failed: %d\n", orders.Load(), attempts.count.Load(), failed.Load())
	return nil
}

// attemptCounter counts how often calls were sent: more often than they were made, where they were repeated.
type attemptCounter struct {
	count atomic.Int64
}

func (c *attemptCounter) HandleRPC(_ context.Context, event stats.RPCStats) {
	if _, ok := event.(*stats.Begin); ok {
		c.count.Add(1)
	}
}

func (*attemptCounter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (*attemptCounter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (*attemptCounter) HandleConn(context.Context, stats.ConnStats)                       {}
