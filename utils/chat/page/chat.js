"use strict";
// Texts reach the page as text nodes only. What is set and said is kept in this tab alone.
const byId = id => document.getElementById(id);
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};
const token = new URLSearchParams(location.search).get("token");
const SNAP = 0.15;
let setup, running = null, history = [], asked = null, columns = [], record = null, scale = 0;

async function call(path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (token) headers["X-Token"] = token;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body), signal: running?.signal } : { headers };
  const response = await fetch(path, options);
  if (response.ok) return response;
  const refused = await response.json().catch(() => ({}));
  throw new Error(refused.error || `the server answered ${response.status}`);
}
const complain = text => { byId("problem").textContent = text; byId("problem").hidden = !text; };
const known = id => setup.behaviors.find(one => one.id === id);

// --- knobs ---

function fillBehaviors(select, none) {
  select.append(new Option(none, ""));
  for (const one of setup.behaviors) select.append(new Option(one.label, one.id));
}
function fraction(input, value) { return (value - input.min) / (input.max - input.min); }
function at(input, value) { return `calc(.5rem + (100% - 1rem) * ${fraction(input, value)})`; }

function showKnobs() {
  const behavior = known(byId("behavior-0").value), slider = byId("multiplier-0"), layer = byId("layer-0");
  const range = behavior?.ranges[layer.value];
  slider.max = Math.max(4, Math.ceil(1.5 * (range ?? 0)));
  slider.min = -slider.max;
  if (Math.abs(slider.value) < SNAP) slider.value = 0;
  byId("multiplier-shown").textContent = Number(slider.value).toString();
  byId("layer-shown").textContent = layer.value;
  slider.disabled = layer.disabled = !behavior;
  byId("meaning").textContent = behavior ? `positive: ${behavior.meaning} (vectors: ${behavior.kind})` : "no steering: the model as it is";
  byId("range").hidden = byId("range-note").hidden = !range;
  if (range) {
    byId("range").style.left = at(slider, -range);
    byId("range").style.right = `calc(100% - ${at(slider, range)})`;
    byId("range-note").textContent = `shaded: within the budget of side effects at this layer, ±${range.toPrecision(3)}`;
  }
  byId("mark").hidden = !behavior?.chosen;
  if (behavior?.chosen) byId("mark").style.left = at(layer, behavior.chosen.layer);
  byId("layer-note").textContent = behavior?.chosen ? `marked: layer ${behavior.chosen.layer}, chosen on validation questions` : "";
  for (const name of ["multiplier-1", "layer-1"]) byId(name).disabled = !byId("behavior-1").value;
  byId("export").disabled = !behavior;
}
function takeBehavior() {
  const behavior = known(byId("behavior-0").value), layer = byId("layer-0");
  if (!behavior) return;
  layer.min = Math.min(...behavior.layers);
  layer.max = Math.max(...behavior.layers);
  layer.value = behavior.layer;
  byId("multiplier-0").max = Math.max(4, Math.abs(behavior.multiplier));
  byId("multiplier-0").value = behavior.multiplier;
}
function asks() {
  const found = [];
  for (const index of [0, 1]) {
    const source = byId(`behavior-${index}`).value;
    if (source) found.push({ source, layer: Number(byId(`layer-${index}`).value), multiplier: Number(byId(`multiplier-${index}`).value), operator: byId("operator").value });
  }
  return byId("behavior-0").value ? found : [];
}
function request() {
  return {
    history: [...history, { role: "user", content: asked }], asks: asks(), strip: byId("strip").checked,
    system_prompt: byId("system").value.trim() || null, temperature: Number(byId("temperature").value),
    seed: Number(byId("seed").value), max_new_tokens: Number(byId("max").value),
  };
}

// --- answers ---

function showColumns(titles) {
  columns = titles.map((title, index) => {
    const box = make("article", "column"), head = make("h2", "", title), text = make("div", "text"), measured = make("p", "measured");
    if (titles.length > 1) {
      const label = make("label", "", "go on with this "), radio = make("input");
      Object.assign(radio, { type: "radio", name: "kept", value: index, checked: index === (titles.length === 2 ? 1 : titles.indexOf("unsteered")) });
      label.append(radio);
      head.append(label);
    }
    box.append(head, text, measured);
    return { title, box, text, measured, said: "", tokens: [], ended: null };
  });
  byId("columns").replaceChildren(...columns.map(column => column.box));
}
function paint(span, projection) {
  if (projection === null || !scale) return;
  const share = Math.min(1, Math.abs(projection) / scale);
  span.style.backgroundColor = `rgb(var(${projection > 0 ? "--high" : "--low"}) / ${(0.55 * share).toFixed(3)})`;
}
function repaint() {
  byId("legend").hidden = !scale;
  byId("scale").textContent = scale.toFixed(2);
  for (const column of columns) for (const one of column.tokens) paint(one.span, one.projection);
}
function take(event) {
  if (event.error) throw new Error(event.error);
  if (event.columns) return showColumns(event.columns);
  if ("token" in event) {
    const column = columns[event.token], span = make("span", "", column.said ? event.text : event.text.trimStart());
    column.said += span.textContent;
    if (event.projection !== null) span.title = `cosine ${event.projection}`;
    column.tokens.push({ span, text: event.text, projection: event.projection });
    column.text.append(span);
    if (Math.abs(event.projection ?? 0) > scale) { scale = Math.abs(event.projection); repaint(); } else paint(span, event.projection);
  } else if ("end" in event) {
    const column = columns[event.end];
    column.ended = event.reason;
    column.said = event.text;
    column.text.append(event.rest);
    if (event.reason === "context") column.measured.append(make("span", "flag", `the context of ${setup.model} is full; begin a new conversation. `));
  } else if ("measured" in event) {
    const { text, measured } = columns[event.measured], parts = [];
    if (event.kl !== null && columns[event.measured].title !== "unsteered") parts.push(`KL to unsteered ${event.kl.toFixed(2)} nats a token`);
    if (event.perplexity !== null) parts.push(`perplexity ${event.perplexity.toFixed(1)}`);
    measured.append(parts.join(", "));
    if (event.faults.length) measured.append(make("span", "flag", `${parts.length ? "; " : ""}falls apart (${event.faults.join(", ")})`));
    columns[event.measured].measures = event;
    text.dataset.measured = "yes";
  }
}
async function answer() {
  running?.abort();
  const mine = running = new AbortController();
  complain("");
  byId("asked").textContent = asked;
  byId("asked").hidden = false;
  byId("command-shown").hidden = true;
  for (const id of ["download", "command", "again"]) byId(id).disabled = false;
  byId("stop").disabled = false;
  scale = 0;
  const body = request();
  record = { model: setup.model, request: body };
  try {
    const response = await call("api/reply", body), reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (mine.signal.aborted) return;
      const lines = (rest + (value ?? "")).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line) take(JSON.parse(line));
      if (done) break;
    }
  } catch (error) {
    if (running === mine && error.name !== "AbortError") complain(error.message);
  } finally {
    if (running === mine) { running = null; byId("stop").disabled = true; repaint(); }
  }
}
function keep() {
  // what was said last becomes part of the conversation, with the answer that is to be gone on with
  if (asked === null) return;
  const chosen = Number(document.querySelector("input[name=kept]:checked")?.value ?? 0);
  const said = columns[chosen]?.said.trim();
  if (said === undefined || said === "") return;
  history.push({ role: "user", content: asked }, { role: "assistant", content: said });
  byId("log").append(make("div", "turn user", asked), make("div", "turn assistant", said));
}
function send() {
  const text = byId("message").value.trim();
  if (!text) return;
  if (running) { running.abort(); running = null; }
  keep();
  asked = text;
  byId("message").value = "";
  answer();
}
function save(name, blob) {
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function recorded() {
  return { ...record, columns: columns.map(({ title, said, ended, tokens, measures }) => ({
    title, text: said, ended, measured: measures ?? null, tokens: tokens.map(({ text, projection }) => [text, projection]) })) };
}
const reported = job => async () => { try { complain(""); await job(); } catch (error) { complain(error.message); } };

// --- the page ---

function listen() {
  byId("controls").addEventListener("input", showKnobs);
  byId("behavior-0").addEventListener("change", () => { takeBehavior(); showKnobs(); });
  byId("behavior-1").addEventListener("change", () => { const one = known(byId("behavior-1").value); if (one) byId("layer-1").value = one.layer; showKnobs(); });
  byId("controls").addEventListener("change", () => { if (asked !== null && byId("controls").checkValidity()) answer(); });
  byId("controls").addEventListener("submit", event => event.preventDefault());
  byId("composer").addEventListener("submit", event => { event.preventDefault(); send(); });
  byId("message").addEventListener("keydown", event => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); } });
  byId("stop").addEventListener("click", () => { running?.abort(); running = null; byId("stop").disabled = true; });
  byId("again").addEventListener("click", answer);
  byId("new").addEventListener("click", () => {
    running?.abort(); running = null; history = []; asked = null; columns = [];
    byId("log").replaceChildren(); byId("columns").replaceChildren(); complain("");
    for (const id of ["asked", "legend", "command-shown"]) byId(id).hidden = true;
    for (const id of ["again", "command", "download", "stop"]) byId(id).disabled = true;
  });
  byId("command").addEventListener("click", reported(async () => {
    const { command } = await (await call("api/command", record.request)).json();
    byId("command-shown").textContent = command;
    byId("command-shown").hidden = false;
    await navigator.clipboard?.writeText(command).catch(() => {});
  }));
  byId("download").addEventListener("click", () => save("chat.json", new Blob([JSON.stringify(recorded(), null, 2)], { type: "application/json" })));
  byId("export").addEventListener("click", reported(async () => {
    const response = await call("api/vector", { history: [], asks: asks() });
    save(/filename="(.+)"/.exec(response.headers.get("content-disposition"))[1], await response.blob());
  }));
}
async function begin() {
  setup = await (await call("api/setup")).json();
  byId("model").textContent = setup.model;
  document.title = `Steered chat: ${setup.model}`;
  fillBehaviors(byId("behavior-0"), "none");
  fillBehaviors(byId("behavior-1"), "none");
  byId("operator").replaceChildren(...setup.operators.map((name) => new Option(name)));
  const first = setup.knobs.asks[0];
  if (first && known(first.source)) {
    byId("behavior-0").value = first.source;
    takeBehavior();
    byId("layer-0").value = first.layer;
    byId("multiplier-0").max = Math.max(4, Math.abs(first.multiplier));
    byId("multiplier-0").min = -byId("multiplier-0").max;
    byId("multiplier-0").value = first.multiplier;
    byId("operator").value = first.operator;
  }
  byId("layer-1").max = setup.n_layers - 1;
  byId("temperature").value = setup.knobs.temperature;
  byId("seed").value = setup.knobs.seed;
  byId("max").value = setup.knobs.max_new_tokens;
  byId("system").value = setup.knobs.system_prompt ?? "";
  if (matchMedia("(max-width: 56rem)").matches) byId("knobs").open = false;
  showKnobs();
  listen();
  document.body.dataset.ready = "yes";
}
begin().catch(error => complain(error.message));
