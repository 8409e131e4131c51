const byId = id => document.getElementById(id);
const { tantorPort, people: peopleUrl, emergency: emergencyUrl } = document.body.dataset;
const tantorHost = `${location.hostname}:${tantorPort}`;
const KEPT_MESSAGES = 300;
const SHOWN_HISTORY = 100;
const SAME_SPEAKER_SECONDS = 120;

let t = null; // the client, once its module is here
let nick = sessionStorage.getItem("nick") || inventNick();
let current = "jungle";
let pinned = true; // the messages follow their end, until one scrolls away from it
// name to {people: Map of client id to nick or null, arrived and gone: client ids since people were asked for, entries, unread}
const channels = new Map();

for (const name of ["jungle", "treehouse"]) addChannel(name);

// The connection: Tantor serves its client itself, brings it back after a break and closes the gaps.

async function start() {
  for (let attempt = 0; !t; attempt += 1) {
    try {
      const { connect } = await import(`${location.protocol}//${tantorHost}/tantor.js${attempt ? `?${attempt}` : ""}`);
      // with storage, a page that is loaded again is the same client
      t = connect(`${location.protocol.replace("http", "ws")}//${tantorHost}/`, { storage: sessionStorage });
    } catch {
      showStatus("waiting", "Tantor cannot be reached…");
      await new Promise(resolve => setTimeout(resolve, 2000));
    }
  }
  t.on("state", ({ state, reason }) => {
    const texts = { connected: "Connected", offline: "No network", closed: `Disconnected: ${reason}` };
    if (state !== "connecting") showStatus(state, texts[state] ?? "Reconnecting…");
    // those who came and went meanwhile are not kept as messages are; who came before us does not know our nick
    if (state === "connected") for (const [name, room] of channels) if (room.isJoined) greet(name, true);
  });
  t.on("gap", ({ channel, from, to }) => {
    const missing = to === null ? "Messages may be missing here" : `${to - from + 1} messages are missing here`;
    if (channels.has(channel)) addEntry(channel, { notice: missing, isGap: true });
  });
  t.on("emergency", ({ data }) => showAlarm(data.message));
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
    if (channels.get(name) === room && t.state !== "closed") addEntry(name, { notice: `This channel cannot be joined: ${error.message}` });
  }
  showChannels();
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
  channels.set(name, { people: new Map(), arrived: new Set(), gone: new Set(), entries: [], unread: 0, isJoined: false });
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
  const follows = previous?.from === entry.from && entry.at - previous.at < SAME_SPEAKER_SECONDS;
  item.className = follows ? "more" : "";
  const name = typeof entry.nick === "string" && entry.nick ? entry.nick : entry.from ?? "Tantor";
  showAvatar(item, entry.from ?? name, name);
  const body = append(item, "div", "body", "");
  const who = append(body, "div", "who", "");
  append(who, "strong", "", name);
  if (entry.isMine) append(who, "span", "you", "you");
  const time = new Date(entry.at * 1000);
  append(who, "time", "", time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })).dateTime = time.toISOString();
  append(body, "div", "text", entry.text);
}

function showChannels() {
  const list = byId("channels");
  list.replaceChildren();
  for (const [name, room] of channels) {
    const button = append(append(list, "li", "", ""), "button", "", "");
    button.type = "button";
    button.setAttribute("aria-current", String(name === current));
    append(button, "span", "name", name);
    if (room.unread) append(button, "span", "unread", room.unread > 99 ? "99+" : String(room.unread)).title = "unread";
    button.addEventListener("click", () => choose(name));
  }
}

function choose(name) {
  current = name;
  const room = channels.get(name);
  room.unread = 0;
  byId("channel-name").textContent = `# ${name}`;
  byId("message").placeholder = `Message to ${name}`;
  byId("leave").hidden = name === "jungle";
  byId("messages").replaceChildren();
  room.entries.forEach((entry, index) => showEntry(entry, room.entries[index - 1]));
  pinned = true;
  followMessages();
  showChannels();
  showPeople();
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
    showAvatar(item, id, name);
    append(item, "span", "name", name);
    if (id === t.clientId) append(item, "span", "you", "you");
  }
}

function showAvatar(parent, id, name) {
  let hue = 0;
  for (const letter of id) hue = (hue * 31 + letter.codePointAt(0)) % 360;
  const avatar = append(parent, "span", "avatar", [...name][0].toUpperCase());
  avatar.style.setProperty("--hue", hue);
  avatar.setAttribute("aria-hidden", "true");
}

function showStatus(state, text) {
  byId("status").dataset.state = state;
  byId("status").textContent = text;
  byId("message").disabled = byId("send").disabled = state !== "connected";
}

function showAlarm(text) {
  byId("alarm-text").textContent = text;
  byId("alarm").hidden = false;
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
  if (!message || t?.state !== "connected") return;
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
    if (t) enter(name);
  }
  choose(name);
});

byId("leave").addEventListener("click", () => {
  t?.leave(current).catch(() => {});
  channels.delete(current);
  choose("jungle");
});

byId("nick-form").addEventListener("submit", event => event.preventDefault());
byId("nick").addEventListener("change", () => {
  const chosen = byId("nick").value.trim();
  if (chosen && chosen !== nick) {
    nick = chosen;
    sessionStorage.setItem("nick", nick);
    for (const name of channels.keys()) t?.broadcast(name, "hello", { nick }).catch(() => {});
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
  const message = byId("alarm-message").value.trim() || "Emergency alert!";
  const response = await fetch(emergencyUrl, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ message }),
  });
  if (response.ok) {
    byId("alarm-message").value = "";
    byId("alarm-dialog").close();
  } else {
    byId("alarm-error").textContent = (await response.json()).error;
    byId("alarm-error").hidden = false;
  }
});
byId("alarm-close").addEventListener("click", () => {
  byId("alarm").hidden = true;
});

byId("messages").addEventListener("scroll", event => {
  const { scrollTop, clientHeight, scrollHeight } = event.target;
  pinned = scrollTop + clientHeight > scrollHeight - 60;
});
new ResizeObserver(followMessages).observe(byId("messages"));

sessionStorage.setItem("nick", nick);
byId("nick").value = nick;
choose(current);
start();
