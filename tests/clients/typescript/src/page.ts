// The story in a page, by gRPC-Web.

import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { story } from "./story";

const query = new URLSearchParams(location.search);
const addr = query.get("addr") ?? "localhost:50051";
const ended = story((addr) => createGrpcWebTransport({ baseUrl: `http://${addr}` }), {
  addr,
  watchAddr: query.get("watch") ?? addr,
  limitedAddr: query.get("limited") ?? undefined,
});
// Whoever opened the page by program waits for this.
Object.assign(globalThis, { ended });
