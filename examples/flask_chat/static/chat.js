import { connect } from "tantor"; // the import map says where: the page's own server has it, whether Tantor runs or not

const byId = id => document.getElementById(id);
const { tantorPort, people: peopleUrl, emergency: emergencyUrl } = document.body.dataset;
const KEPT_MESSAGES = 300;
const SHOWN_HISTORY = 100;
const SAME_SPEAKER_SECONDS = 120;
const SHOWN_ALARMS = 20;
const HOME = "jungle";
// the last line of an alarm from this page names who sounded it
const SIGNATURE = /\n— (.+)$/;

// The client comes back after a break and recovers what it missed. With storage, a page that is loaded again is the
// same client.
const t = connect(`${location.protocol.replace("http", "ws")}//${location.hostname}:${tantorPort}/`, { storage: sessionStorage });
let nick = sessionStorage.getItem("nick") || inventNick();
let current = HOME;
let pinned = true; // the messages follow their end, until one scrolls away from it
let wasConnected = false;
// name to {people: Map of client id to nick or null, arrived and gone: client ids since people were asked for, entries,
// unread, isJoined, refusal: the error's text, item: its element in the list}
const channels = new Map();

for (const name of savedChannels()) addChannel(name);

// The connection

function start() {
  t.on("state", ({ state, reason }) => {
    wasConnected ||= state === "connected";
    const away = wasConnected ? "Reconnecting…" : "Tantor cannot be reached…";
    const texts = { connected: "Connected", offline: "No network", closed: `Disconnected: ${reason}` };
    if (state !== "connecting") showStatus(state, texts[state] ?? away);
    // those who came and went meanwhile are not kept as messages are; who came before us does not know our nick
    if (state === "connected") for (const [name, room] of channels) if (room.isJoined) greet(name, true);
  });
  t.on("gap", ({ channel, from, to, reason }) => {
    // asked again, the server says why
    if (reason === "refused") t.join(channel, receive).catch(error => t.state !== "closed" && refuse(channel, error.message));
    const missing = to === null ? "Messages may be missing here" : `${to - from + 1} messages are missing here`;
    if (channels.has(channel)) addEntry(channel, { notice: missing, isGap: true });
  });
  t.on("emergency", ({ data, timestamp }) => showAlarm(String(data.message), timestamp));
  for (const name of channels.keys()) enter(name);
}

// Shows what was said before, and goes on from there.
async function enter(name) {
  const room = channels.get(name);
  try {
    const { epoch, offset, publications } = await t.history(name, { limit: SHOWN_HISTORY });
    if (channels.get(name) !== room) return; // left meanwhile
    for (const message of publications) if (message.event === "chat_message") showMessage(message);
    room.unread = 0;
    await t.join(name, receive, { recover: { epoch, offset } });
    room.isJoined = true;
    await greet(name, true);
  } catch (error) {
    if (channels.get(name) === room && t.state !== "closed") refuse(name, error.message);
  }
  showChannels();
}

// The tab stays, to say why, until one leaves it.
function refuse(name, why) {
  const room = channels.get(name);
  if (!room) return;
  room.isJoined = false;
  room.refusal = why;
  room.people = new Map();
  addEntry(name, { notice: `This channel cannot be joined: ${why}` });
  saveChannels();
  if (name === current) choose(name);
}

// Says who we are, if it has to be said, and asks who is here: the server knows those who were there before.
async function greet(name, saysHello) {
  const room = channels.get(name);
  if (saysHello) t.broadcast(name, "hello", { nick }).catch(() => {});
  [room.arrived, room.gone] = [new Set(), new Set()];
  room.people.set(t.clientId, nick);
  let known;
  try {
    const response = await fetch(`${peopleUrl}?channel=${encodeURIComponent(name)}`);
    known = new Map(Object.entries(await response.json()));
  } catch {
    // the page's server may be a moment behind
    setTimeout(() => channels.get(name) === room && greet(name, false), 1000);
    return;
  }
  const people = new Map([[t.clientId, nick]]);
  for (const id of [...known.keys(), ...room.arrived]) {
    if (id !== t.clientId && !room.gone.has(id)) people.set(id, known.get(id) ?? room.people.get(id) ?? null);
  }
  room.people = people;
  if (name === current) showPeople();
}

function receive(message) {
  const { event, channel, data } = message;
  const room = channels.get(channel);
  if (!room || typeof data !== "object" || data === null) return;
  if (event === "chat_message") {
    if (typeof data.nick === "string" && room.people.has(message.from)) room.people.set(message.from, data.nick);
    showMessage(message);
  } else if (event === "hello" && typeof data.nick === "string") {
    arrive(room, message.from);
    meet(channel, message.from, data.nick);
  } else if (event === "user_joined") {
    arrive(room, data.client_id);
    if (!room.people.has(data.client_id)) room.people.set(data.client_id, null);
  } else if (event === "user_left") {
    room.arrived.delete(data.client_id);
    room.gone.add(data.client_id);
    const left = room.people.get(data.client_id);
    room.people.delete(data.client_id);
    if (left) addEntry(channel, { notice: `${left} left` });
  }
  if (channel === current) showPeople();
}

function arrive(room, id) {
  room.arrived.add(id);
  room.gone.delete(id);
}

function showMessage({ channel, from, data, timestamp }) {
  if (typeof data === "object" && data !== null) addEntry(channel, { from, isMine: from === t.clientId, nick: data.nick, text: String(data.message), at: timestamp });
}

function meet(channel, id, theirs) {
  const people = channels.get(channel).people;
  const before = people.get(id);
  people.set(id, theirs);
  if (id === t.clientId) return;
  if (!before) addEntry(channel, { notice: `${theirs} joined` });
  else if (before !== theirs) addEntry(channel, { notice: `${before} is ${theirs} now` });
}

// What is shown

function addChannel(name) {
  const item = append(byId("channels"), "li", "", "");
  const button = append(item, "button", "", "");
  button.type = "button";
  append(button, "span", "name", name).title = name;
  append(button, "span", "unread", "").title = "unread";
  button.addEventListener("click", () => choose(name));
  channels.set(name, { people: new Map(), arrived: new Set(), gone: new Set(), entries: [], unread: 0, isJoined: false, refusal: null, item });
}

// The channels of this tab, for when the page is loaded again.
function saveChannels() {
  const names = [...channels].filter(([, room]) => room.refusal === null).map(([name]) => name);
  sessionStorage.setItem("channels", JSON.stringify({ names, current }));
}

function savedChannels() {
  try {
    const saved = JSON.parse(sessionStorage.getItem("channels"));
    const names = saved.names.filter(name => typeof name === "string" && name && name !== HOME);
    if (names.includes(saved.current)) current = saved.current;
    return new Set([HOME, ...names]);
  } catch {
    return [HOME, "treehouse"]; // the first visit
  }
}

function addEntry(channel, entry) {
  const room = channels.get(channel);
  room.entries.push(entry);
  if (room.entries.length > KEPT_MESSAGES) room.entries.shift();
  if (channel === current) {
    showEntry(entry, room.entries.at(-2));
    while (byId("messages").childElementCount > KEPT_MESSAGES) byId("messages").firstElementChild.remove();
    followMessages();
  } else if (!entry.notice) {
    room.unread += 1;
    showChannels();
  }
}

function showEntry(entry, previous) {
  const item = append(byId("messages"), "li", "", "");
  if (entry.notice) {
    item.className = entry.isGap ? "notice gap" : "notice";
    item.textContent = entry.notice;
    return;
  }
  const follows = previous?.from === entry.from && previous.nick === entry.nick && entry.at - previous.at < SAME_SPEAKER_SECONDS;
  item.className = follows ? "more" : "";
  const name = typeof entry.nick === "string" && entry.nick ? entry.nick : entry.from ?? "Tantor";
  showAvatar(item, name);
  const body = append(item, "div", "body", "");
  const who = append(body, "div", "who", "");
  append(who, "strong", "", name);
  if (entry.isMine) append(who, "span", "you", "you");
  showTime(who, entry.at);
  append(body, "div", "text", entry.text);
}

function showChannels() {
  for (const [name, { item, unread, refusal }] of channels) {
    const button = item.firstElementChild;
    button.setAttribute("aria-current", String(name === current));
    button.classList.toggle("refused", refusal !== null);
    const count = button.querySelector(".unread");
    count.hidden = !unread;
    count.textContent = unread > 99 ? "99+" : String(unread || "");
  }
}

function choose(name) {
  current = name;
  const room = channels.get(name);
  room.unread = 0;
  byId("channel-name").textContent = `# ${name}`;
  byId("leave").hidden = name === HOME;
  byId("messages").replaceChildren();
  room.entries.forEach((entry, index) => showEntry(entry, room.entries[index - 1]));
  pinned = true;
  followMessages();
  showChannels();
  room.item.scrollIntoView({ block: "nearest", inline: "nearest" });
  showComposer();
  showPeople();
  saveChannels();
}

// The field stays enabled while the connection is away: to disable it would take the focus from who is typing.
function showComposer() {
  const { refusal } = channels.get(current);
  byId("message").placeholder = refusal === null ? `Message to ${current}` : "You are not in this channel";
  byId("message").disabled = refusal !== null;
  byId("send").disabled = refusal !== null || t.state !== "connected";
}

function followMessages() {
  if (pinned) byId("messages").scrollTop = byId("messages").scrollHeight;
}

function showPeople() {
  const { people } = channels.get(current);
  byId("people-title").textContent = `Online · ${people.size}`;
  const list = byId("people");
  list.replaceChildren();
  const sorted = [...people].map(([id, theirs]) => [id, theirs || id]).sort((one, other) => one[1].localeCompare(other[1]));
  for (const [id, name] of sorted) {
    const item = append(list, "li", "", "");
    showAvatar(item, name);
    append(item, "span", "name", name).title = name;
    if (id === t.clientId) append(item, "span", "you", "you");
  }
}

// A colour for each nick: it stays when its owner comes back as another client.
function showAvatar(parent, name) {
  let hue = 0;
  for (const letter of name) hue = (hue * 31 + letter.codePointAt(0)) % 360;
  const avatar = append(parent, "span", "avatar", [...name][0].toUpperCase());
  avatar.style.setProperty("--hue", hue);
  avatar.setAttribute("aria-hidden", "true");
}

function showStatus(state, text) {
  byId("status").dataset.state = state;
  byId("status").textContent = text;
  showComposer();
}

// Each alarm stays until it is dismissed; the newest is the first.
function showAlarm(text, at) {
  const [, who] = SIGNATURE.exec(text) ?? [];
  const alarm = document.createElement("div");
  append(alarm, "strong", "", "Emergency");
  append(alarm, "span", "alarm-text", text.replace(SIGNATURE, ""));
  const from = append(alarm, "span", "alarm-from", who ? `${who}, ` : "");
  showTime(from, at);
  const dismiss = append(alarm, "button", "", "Dismiss");
  dismiss.type = "button";
  const list = byId("alarm");
  dismiss.addEventListener("click", () => {
    alarm.remove();
    list.hidden = !list.childElementCount;
  });
  list.prepend(alarm);
  while (list.childElementCount > SHOWN_ALARMS) list.lastElementChild.remove();
  list.hidden = false;
}

function showTime(parent, at) {
  const time = new Date(at * 1000);
  append(parent, "time", "", time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })).dateTime = time.toISOString();
}

// Only ever as text: what others wrote is never markup.
function append(parent, name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}

function inventNick() {
  const one = words => words[Math.floor(Math.random() * words.length)];
  return `${one(["Quiet", "Brave", "Merry", "Sly", "Swift", "Gentle"])} ${one(["Okapi", "Toucan", "Ocelot", "Tapir", "Gibbon", "Lemur"])}`;
}

// What is done

byId("composer").addEventListener("submit", event => {
  event.preventDefault();
  const message = byId("message").value.trim();
  if (!message || t.state !== "connected") return;
  const channel = current;
  t.broadcast(channel, "chat_message", { nick, message }).catch(error => {
    if (channels.has(channel)) addEntry(channel, { notice: `Not sent: ${message} (${error.message})` });
  });
  byId("message").value = "";
});

byId("join").addEventListener("submit", event => {
  event.preventDefault();
  const name = byId("join-name").value.trim();
  if (!name) return;
  byId("join-name").value = "";
  if (!channels.has(name)) {
    addChannel(name);
    enter(name);
  }
  choose(name);
});

byId("leave").addEventListener("click", () => {
  const { refusal, item } = channels.get(current);
  if (refusal === null) t.leave(current).catch(() => {});
  item.remove();
  channels.delete(current);
  choose(HOME);
});

byId("nick-form").addEventListener("submit", event => event.preventDefault());
byId("nick").addEventListener("change", () => {
  const chosen = byId("nick").value.trim();
  if (chosen && chosen !== nick) {
    nick = chosen;
    sessionStorage.setItem("nick", nick);
    for (const [name, room] of channels) if (room.refusal === null) t.broadcast(name, "hello", { nick }).catch(() => {});
  }
  byId("nick").value = nick;
});

byId("sound-alarm").addEventListener("click", () => {
  byId("alarm-error").hidden = true;
  byId("alarm-dialog").showModal();
});
byId("alarm-cancel").addEventListener("click", () => byId("alarm-dialog").close());
byId("alarm-dialog").addEventListener("submit", async event => {
  event.preventDefault();
  const message = `${byId("alarm-message").value.trim() || "Emergency alert!"}\n— ${nick}`;
  byId("alarm-error").hidden = true;
  const problem = await soundAlarm(message);
  if (problem === null) {
    byId("alarm-message").value = "";
    byId("alarm-dialog").close();
  } else {
    byId("alarm-error").textContent = `The alarm was not sounded: ${problem}`;
    byId("alarm-error").hidden = false;
  }
});

// What went wrong; null if nothing did.
async function soundAlarm(message) {
  try {
    const response = await fetch(emergencyUrl, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ message }),
      signal: AbortSignal.timeout(10_000),
    });
    if (response.ok) return null;
    const answer = await response.json().catch(() => ({}));
    return answer.error ?? `the server answered with status ${response.status}`;
  } catch {
    return "the server cannot be reached";
  }
}

byId("messages").addEventListener("scroll", event => {
  const { scrollTop, clientHeight, scrollHeight } = event.target;
  pinned = scrollTop + clientHeight > scrollHeight - 60;
});
new ResizeObserver(followMessages).observe(byId("messages"));

sessionStorage.setItem("nick", nick);
byId("nick").value = nick;
choose(current);
start();
