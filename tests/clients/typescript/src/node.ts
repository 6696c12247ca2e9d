// The story in Node, by gRPC over HTTP/2.

import { readFileSync } from "node:fs";

import type { Interceptor, Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { story } from "./story";

const addr = process.env.WAYBILL_ADDR ?? "localhost:50051";
const { WAYBILL_CA: ca, WAYBILL_API_KEY: key = "" } = process.env;
await story(ca ? secured(ca, key) : (addr) => createGrpcTransport({ baseUrl: `http://${addr}` }), {
  addr,
  watchAddr: process.env.WAYBILL_WATCH_ADDR ?? addr,
  limitedAddr: process.env.WAYBILL_LIMITED_ADDR,
});
// Connections are kept for the next call.
process.exit();

/** For a gateway that speaks TLS, with a certificate of this authority, and asks for an API key. */
function secured(ca: string, key: string): (addr: string) => Transport {
  const show: Interceptor = (next) => (request) => {
    request.header.set("x-api-key", key);
    return next(request);
  };
  // Without `ca` the authorities are those that Node brings along.
  const nodeOptions = { ca: readFileSync(ca) };
  return (addr) => createGrpcTransport({ baseUrl: `https://${addr}`, nodeOptions, interceptors: [show] });
}
