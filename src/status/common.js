// Functions that the scripts of both exporters' status pages share.
const $ = id => document.getElementById(id);
// Parses metrics in Prometheus' text format. Returns an object {sample with labels: value}.
function parse(text) {
  const samples = {};
  for (const line of text.split("\n")) {
    const end = line.lastIndexOf(" ");
    if (end > 0 && line[0] !== "#") samples[line.slice(0, end)] = Number(line.slice(end + 1));
  }
  return samples;
}

const whole = value => Math.round(value).toLocaleString("en");
function span(seconds) {
  seconds = Math.max(0, Math.round(seconds));
  if (seconds < 90) return seconds + " s";
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return minutes + " min";
  const hours = Math.round(minutes / 60);
  return hours < 48 ? hours + " h" : Math.round(hours / 24) + " d";
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Text with this node's rank for a block: the node's position in the order in which the nodes of the block store connected the block. The
// block store is a database with the rows of many nodes. Returns null without a block store, or if it does not have the block yet.
function rankOf(status, hash) {
  const found = status.ranks?.find(rank => rank.block_hash === hash);
  if (!found) return null;
  if (found.rank == null) return "clock not synchronized";
  const micros = value => value < 1e5 ? `${(value / 1000).toFixed(1)} ms` : `${(value / 1e6).toFixed(2)} s`;
  return `${found.rank} of ${found.nodes}, +${micros(found.offset_us)} ± ${micros(found.error_us)}`;
}

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", headers: { Accept: "text/plain" } });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer;
}
