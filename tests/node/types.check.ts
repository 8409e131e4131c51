// Read by `tsc`, never run: what the declarations allow, and what they must not.
import { connect, TantorError, type Gap, type Joined, type Message, type State, type Tantor } from "../../python/tantor/js/tantor.js";

const t: Tantor = connect("ws://localhost:8080", { storage: sessionStorage, minDelay: 100, WebSocket });
connect(new URL("ws://localhost:8080"));

const joined: Promise<Joined> = t.join("jungle", (message: Message) => console.log(message.event, message.data.text));
t.join("jungle", async message => void message.offset, { recover: { epoch: "0123456789abcdef", offset: 1 } });
t.join("jungle", { recover: { epoch: "0123456789abcdef", offset: 1 } });
t.join("jungle");
joined.then(({ epoch, offset, recovered }) => epoch.length + offset + Number(recovered));

t.broadcast("jungle", "greeting", { text: "hello" }, { idempotencyKey: "once" }).then(({ recipients }) => recipients + 1);
t.history("jungle", { limit: 10, after: 3 }).then(({ publications, more }) => more || publications[0]?.offset);
t.presence("jungle").then(({ online, users }) => online + users.length);
t.ping().then(milliseconds => milliseconds.toFixed());
t.command("wave", { at: "us" }).catch((error: TantorError) => error.code);
t.leave("jungle");
const unsubscribe: () => void = t.subscribe("jungle", async ({ event }: Message) => event);
unsubscribe();
connect("ws://localhost:8080", { protocols: ["chat"] });

const off: () => void = t.on("gap", (gap: Gap) => gap.from);
t.on("state", ({ state, delay }: State) => state === "waiting" && delay);
t.on("emergency", alert => alert.data.message);
t.on("error", ({ error }) => error instanceof TantorError);
const id: string | null = t.clientId;
off();
t.close();

// @ts-expect-error an event that there is not
t.on("nonsense", () => {});
// @ts-expect-error a channel has a name
t.join(5);
// @ts-expect-error a position has an epoch
t.join("jungle", { recover: { offset: 1 } });
// @ts-expect-error a subscription has a handler
t.subscribe("jungle");
// @ts-expect-error it is not to be set
t.clientId = id;
// @ts-expect-error a delay is a number
connect("ws://localhost:8080", { minDelay: "1s" });
