// uWebSockets in Bun: its own publish to a topic.
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  fetch(request, self) {
    const upgraded = self.upgrade(request, { data: { publishes: new URL(request.url).pathname === "/publish" } });
    return upgraded ? undefined : new Response("a WebSocket server", { status: 426 });
  },
  websocket: {
    idleTimeout: 0,
    sendPings: false,
    perMessageDeflate: false,
    backpressureLimit: 64 * 1024 * 1024,
    open(socket) {
      if (!socket.data.publishes) socket.subscribe("bench");
    },
    message(socket, message) {
      server.publish("bench", message);
    },
  },
});
