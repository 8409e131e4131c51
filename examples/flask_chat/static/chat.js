"use strict";

const byId = id => document.getElementById(id);
const { tantorPort, people: peopleUrl, emergency: emergencyUrl } = document.body.dataset;
const address = `${location.protocol === "https:" ? "wss" : "ws"}://${location.hostname}:${tantorPort}`;
const KEPT_MESSAGES = 300;
const SAME_SPEAKER_SECONDS = 120;

let socket = null;
let me = null; // our client id: a new one with each connection
let nick = sessionStorage.getItem("nick") || inventNick();
let current = "jungle";
let retryDelay = 500;
let pinned = true; // the messages follow their end, until one scrolls away from it
// name to {people: Map of client id to nick or null, entries, unread}; a new client is in jungle from the start
const channels = new Map();

for (const name of ["jungle", "treehouse"]) addChannel(name);

// The connection

function connect() {
  socket = new WebSocket(address);
  socket.onmessage = event => receive(JSON.parse(event.data));
  socket.onclose = () => {
    showStatus("connecting", "Reconnecting…");
    setTimeout(connect, retryDelay * (0.5 + Math.random()));
    retryDelay = Math.min(retryDelay * 2, 8000);
  };
}

function command(fields) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(fields));
}

function broadcast(channel, event, data) {
  command({ action: "broadcast", channel, event, data });
}

function receive(message) {
  const { event, channel, data } = message;
  if (event === "welcome") {
    me = message.client_id;
    retryDelay = 500;
    showStatus("connected", "Connected");
    for (const name of channels.keys()) enter(name);
    return;
  }
  if (event === "emergency_alert") return showAlarm(data.message);
  const room = channels.get(channel);
  if (!room || typeof data !== "object" || data === null) return;
  if (event === "chat_message") {
    if (typeof data.nick === "string") room.people.set(message.from, data.nick);
    addEntry(channel, { from: message.from, nick: data.nick, text: String(data.message), at: message.timestamp });
  } else if (event === "hello" && typeof data.nick === "string") {
    meet(channel, message.from, data.nick);
  } else if (event === "user_joined") {
    if (!room.people.has(data.client_id)) room.people.set(data.client_id, null);
  } else if (event === "user_left") {
    const left = room.people.get(data.client_id);
    room.people.delete(data.client_id);
    if (left) addEntry(channel, { notice: `${left} left` });
  }
  if (channel === current) showPeople();
}

// Join a channel and say who we are; who was there before us, the server knows.
async function enter(name) {
  const room = channels.get(name);
  room.people = new Map([[me, nick]]);
  command({ action: "join_channel", channel: name });
  broadcast(name, "hello", { nick });
  const asked = me;
  const response = await fetch(`${peopleUrl}?channel=${encodeURIComponent(name)}`);
  const known = await response.json();
  if (asked !== me) return; // connected anew meanwhile
  for (const [id, theirs] of Object.entries(known)) {
    if (theirs || !room.people.has(id)) room.people.set(id, id === me ? nick : theirs);
  }
  if (name === current) showPeople();
}

function meet(channel, id, theirs) {
  const people = channels.get(channel).people;
  const before = people.get(id);
  people.set(id, theirs);
  if (id === me) return;
  if (!before) addEntry(channel, { notice: `${theirs} joined` });
  else if (before !== theirs) addEntry(channel, { notice: `${before} is ${theirs} now` });
}

// What is shown

function addChannel(name) {
  channels.set(name, { people: new Map(), entries: [], unread: 0 });
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
    item.className = "notice";
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
  if (entry.from === me) append(who, "span", "you", "you");
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
    if (id === me) append(item, "span", "you", "you");
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
  if (!message || socket.readyState !== WebSocket.OPEN) return;
  broadcast(current, "chat_message", { nick, message });
  byId("message").value = "";
});

byId("join").addEventListener("submit", event => {
  event.preventDefault();
  const name = byId("join-name").value.trim();
  if (!name) return;
  byId("join-name").value = "";
  if (!channels.has(name)) {
    addChannel(name);
    if (socket.readyState === WebSocket.OPEN) enter(name);
  }
  choose(name);
});

byId("leave").addEventListener("click", () => {
  command({ action: "leave_channel", channel: current });
  channels.delete(current);
  choose("jungle");
});

byId("nick-form").addEventListener("submit", event => event.preventDefault());
byId("nick").addEventListener("change", () => {
  const chosen = byId("nick").value.trim();
  if (chosen && chosen !== nick) {
    nick = chosen;
    sessionStorage.setItem("nick", nick);
    for (const name of channels.keys()) broadcast(name, "hello", { nick });
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
connect();
