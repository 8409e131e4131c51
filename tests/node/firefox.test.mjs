// tantor.js and the example chat in Firefox, which is driven over WebDriver BiDi: FIREFOX names the program.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import puppeteer from "puppeteer-core";
import { eventually, Python, upTo } from "./support.mjs";

const TIMEOUT = { timeout: 120_000 };
// The page notes what it is shown in the tab's storage, so that nothing depends on whether going back loads it anew.
const PAGE = `<!doctype html><title>A page</title>{{ tantor_importmap() }}<script type="module">
  import { connect } from "tantor";
  const t = connect("ws://127.0.0.1:{{ port }}/", { storage: sessionStorage, minDelay: 20, maxDelay: 500 });
  const note = (name, value) => sessionStorage.setItem(name, JSON.stringify([...JSON.parse(sessionStorage.getItem(name) ?? "[]"), value]));
  t.on("gap", gap => note("gaps", gap));
  t.on("error", ({ error }) => note("errors", String(error)));
  t.on("welcome", ({ client_id: id }) => note("ids", id));
  await t.join("{{ channel }}", ({ event, data }) => event === "n" && note("numbers", data));
  window.t = t;
</script>`;

const python = new Python();
let browser;
let site;
let chat;

before(async () => {
  await python.run(
    `
from flask import Flask, render_template_string, request
from processes import Script
from support import Site
from tantor.flask import js_blueprint
import tempfile
server = serve(port=free_port(), leave_delay=30)
app = Flask("page")
app.register_blueprint(js_blueprint())
app.add_url_rule("/", "page", lambda: render_template_string(page, port=server.port, channel=request.args["channel"]))
app.add_url_rule("/elsewhere", "elsewhere", lambda: "<title>Elsewhere</title>")
site = ended.enter_context(Site(app))
chat_port = free_port()
folder = Path(ended.enter_context(tempfile.TemporaryDirectory()))
example = Path(__file__).parents[2] / "examples" / "flask_chat" / "app.py"
chat = ended.enter_context(
    Script(
        [sys.executable, str(example), "--port", str(chat_port)],
        environment={"TANTOR_PORT": str(free_port()), "TANTOR_DATABASE": f"sqlite:///{folder}/chat.db"},
        log=folder / "log",
    )
)
chat.wait_for_line("Chat at")
`,
    { page: PAGE },
  );
  site = `http://127.0.0.1:${await python.run("site.port")}`;
  chat = `http://127.0.0.1:${await python.run("chat_port")}/`;
  browser = await puppeteer.launch({ browser: "firefox", executablePath: process.env.FIREFOX, headless: true });
}, TIMEOUT);
after(async () => {
  await browser?.close();
  await python.end();
}, TIMEOUT);

/** A tab on the page, joined. */
async function open(channel) {
  const tab = await browser.newPage();
  await tab.goto(`${site}/?channel=${channel}`);
  await joined(tab);
  return tab;
}

function joined(tab) {
  return tab.waitForFunction(() => window.t?.state === "connected");
}

function noted(tab, name) {
  return tab.evaluate(name => JSON.parse(sessionStorage.getItem(name) ?? "[]"), name);
}

function publish(channel, first, last) {
  return python.run("[server.broadcast(channel, 'n', n).result() for n in range(first, last + 1)]", { channel, first, last });
}

/** The tab was shown these numbers, in order, once each, and was told of no loss. */
async function shows(tab, last) {
  await eventually(async () => (await noted(tab, "numbers")).at(-1) === last, `number ${last}`);
  assert.deepEqual(await noted(tab, "numbers"), upTo(last));
  assert.deepEqual([await noted(tab, "gaps"), await noted(tab, "errors")], [[], []]);
}

test("two tabs are two clients, and each sees what the other says", TIMEOUT, async () => {
  const [ada, bob] = [await open("tabs"), await open("tabs")];
  await ada.evaluate(() => t.broadcast("tabs", "n", 1));
  await bob.evaluate(async () => void (await t.broadcast("tabs", "n", 2)));
  for (const tab of [ada, bob]) await shows(tab, 2);
  assert.notDeepEqual(await noted(ada, "ids"), await noted(bob, "ids"));
  for (const tab of [ada, bob]) await tab.close();
  await eventually(() => python.run("not server.connections"), "both gone");
});

test("a tab that is loaded again is the same client, and misses nothing", TIMEOUT, async () => {
  const tab = await open("reload");
  await publish("reload", 1, 3);
  await shows(tab, 3);
  const publishing = publish("reload", 4, 80);
  await tab.reload();
  await publishing;
  await joined(tab);
  await shows(tab, 80);
  assert.equal(new Set(await noted(tab, "ids")).size, 1);
  await tab.close();
});

test("a tab that comes back to the page is the same client, and misses nothing", TIMEOUT, async () => {
  const tab = await open("history");
  await publish("history", 1, 3);
  await shows(tab, 3);
  await tab.goto(`${site}/elsewhere`);
  await publish("history", 4, 6);
  await traverse(tab, -1, () => window.t?.state === "connected");
  await shows(tab, 6);
  assert.equal(new Set(await noted(tab, "ids")).size, 1);
  await tab.close();
});

/** Goes through the tab's history; its load event does not come for a page that Firefox has kept. */
async function traverse(tab, delta, isThere) {
  await tab.evaluate(delta => void setTimeout(() => history.go(delta)), delta);
  await eventually(() => tab.evaluate(isThere).catch(() => false), `the page at ${delta}`);
}

test("a tab that leaves the page by the back button is the same client, and misses nothing", TIMEOUT, async () => {
  const tab = await browser.newPage();
  await tab.goto(`${site}/elsewhere`);
  await tab.goto(`${site}/?channel=left`);
  await joined(tab);
  await publish("left", 1, 3);
  await shows(tab, 3);
  await traverse(tab, -1, () => document.title === "Elsewhere");
  await publish("left", 4, 6);
  await traverse(tab, 1, () => window.t?.state === "connected");
  await shows(tab, 6);
  assert.equal(new Set(await noted(tab, "ids")).size, 1);
  await tab.close();
});

test("a server that is away for a moment is found again", TIMEOUT, async () => {
  const tab = await open("away");
  await publish("away", 1, 3);
  await shows(tab, 3);
  await python.run("server.stop().result(15)");
  await tab.waitForFunction(() => t.state !== "connected");
  await python.run("_ = server.start_background()");
  await joined(tab);
  await publish("away", 4, 6);
  await eventually(async () => (await noted(tab, "numbers")).at(-1) === 6);
  assert.deepEqual(await noted(tab, "numbers"), upTo(6));
  await tab.close();
});

test("the example chat: two tabs, a channel of their own, a reload, an alarm", TIMEOUT, async () => {
  const tabs = [];
  for (const nick of ["Ada", "Bob"]) {
    const tab = await browser.newPage();
    await tab.setViewport({ width: 390, height: 780 });
    await tab.goto(chat);
    await tab.waitForSelector("#status[data-state=connected]");
    await tab.$eval("#nick", (field, nick) => {
      field.value = nick;
      field.dispatchEvent(new Event("change"));
    }, nick);
    await tab.type("#join-name", "river\n");
    tabs.push(tab);
  }
  const [ada, bob] = tabs;
  const texts = tab => tab.$$eval("#messages .text", all => all.map(text => text.textContent));
  await ada.type("#message", "the water rises\n");
  await eventually(async () => (await texts(bob)).includes("the water rises"), "said to Bob");
  await bob.reload();
  await bob.waitForSelector("#status[data-state=connected]");
  await eventually(async () => (await texts(bob)).length === 1, "there after the reload");
  assert.equal(await bob.$eval("#channel-name", name => name.textContent), "# river");
  assert.equal(await bob.evaluate(() => document.documentElement.scrollWidth), 390);
  await bob.type("#message", "and falls\n");
  await eventually(async () => (await texts(ada)).join() === "the water rises,and falls", "said to Ada");
  await ada.click("#sound-alarm");
  await ada.type("#alarm-message", "piranhas\n");
  for (const tab of tabs) {
    await tab.waitForSelector("#alarm .alarm-text");
    assert.equal(await tab.$eval("#alarm .alarm-text", text => text.textContent), "piranhas");
    assert.match(await tab.$eval("#alarm .alarm-from", text => text.textContent), /^Ada, /);
  }
  for (const tab of tabs) await tab.close();
});
