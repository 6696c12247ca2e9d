// The story in Node, by gRPC over HTTP/2.

import { createGrpcTransport } from "@connectrpc/connect-node";

import { story } from "./story";

const addr = process.env.WAYBILL_ADDR ?? "localhost:50051";
await story((addr) => createGrpcTransport({ baseUrl: `http://${addr}` }), {
  addr,
  watchAddr: process.env.WAYBILL_WATCH_ADDR ?? addr,
  limitedAddr: process.env.WAYBILL_LIMITED_ADDR,
});
// Connections are kept for the next call.
process.exit();
