// Serves the page, opens it in Chromium, and prints what it prints.

import { readFile, rm, mkdtemp } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { chromium } from "playwright-core";

const port = Number(process.env.WAYBILL_PAGE_PORT ?? 5173);
const script = await readFile(new URL("page/page.js", import.meta.url));
const server = createServer((request, response) => {
  if (request.url === "/page.js") {
    response.setHeader("content-type", "text/javascript").end(script);
  } else {
    response.setHeader("content-type", "text/html").end('<!doctype html><script src="page.js"></script>');
  }
});
await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));

const profile = await mkdtemp(join(tmpdir(), "waybill-page-"));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const page = await browser.newPage();
  // A refusal is an error to the browser's console, and none to the page.
  page.on("console", (message) => message.type() === "log" && console.log(message.text()));
  page.on("pageerror", (error) => console.error(error));
  const query = new URLSearchParams();
  for (const [name, variable] of [["addr", "WAYBILL_ADDR"], ["watch", "WAYBILL_WATCH_ADDR"], ["limited", "WAYBILL_LIMITED_ADDR"]] as const) {
    const value = process.env[variable];
    if (value) {
      query.set(name, value);
    }
  }
  await page.goto(`http://127.0.0.1:${port}/?${query}`);
  await page.evaluate("ended");
} finally {
  await browser.close();
  await rm(profile, { recursive: true, force: true });
  server.close();
}
