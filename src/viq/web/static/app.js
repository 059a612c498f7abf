// The script of all pages of viq web: work that takes its turn, the picture view, conversations.
// Everything that comes from elsewhere goes into pages as text, never as markup.
"use strict";

const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const csrf = $('meta[name="csrf"]').content;

// Work: sent by a form, followed until it is done

async function send(address, body) {
  const answer = await fetch(address, {
    method: "POST", body, headers: { "X-CSRF-Token": csrf, Accept: "application/json" },
  });
  const text = await answer.text();
  try {
    return JSON.parse(text);
  } catch {
    return { error: text.trim() || "the server did not answer" };
  }
}

async function* events(address, signal) {
  const answer = await fetch(address, { signal });
  if (!answer.ok) throw new Error("the server does not know this work any more");
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

function words(event) {
  if (event.position) return event.position === 1 ? "One other is before you" : `${event.position} others are before you`;
  if (event.position === 0) return "Your turn";
  return event.stage ? event.stage[0].toUpperCase() + event.stage.slice(1) + " …" : null;
}

function statusOf(form) {
  const all = $$(".status");
  const next = all.find((one) => form.compareDocumentPosition(one) & Node.DOCUMENT_POSITION_FOLLOWING);
  const place = next || all.at(-1);
  return { text: $("[data-status]", place), stop: $("[data-stop]", place) };
}

async function submit(form, data) {
  if (form.dataset.busy) return;
  form.dataset.busy = "yes";
  const { text, stop } = statusOf(form);
  const say = (message, bad = false) => {
    text.textContent = message;
    text.classList.toggle("bad", bad);
  };
  const talk = form.hasAttribute("data-ask") ? conversation(data.get("question")) : null;
  say("Sending …");
  let failed = null;
  try {
    const begun = await send(form.getAttribute("action"), data);
    if (!begun.work) throw new Error(begun.error || "that did not work");
    stop.hidden = false;
    stop.onclick = () => send(`${begun.work}/stop`);
    for await (const event of events(begun.work)) {
      if (event.error) throw new Error(event.error);
      if (event.text && talk) talk.add(event.text);
      if (event.image) $("[data-drawn]").src = event.image;
      const message = words(event);
      if (message) say(message);
      if (event.done) {
        if (event.done.picture) return location.assign(form.dataset.next + event.done.picture);
        if (event.done.page) {
          if (event.done.page === location.pathname) location.reload();
          else location.assign(event.done.page);
          return;
        }
        if (talk) talk.end(event.done.answer);
      }
    }
    say("");
  } catch (error) {
    failed = error;
    say(error.message || "the server cannot be reached", true);
  } finally {
    stop.hidden = true;
    delete form.dataset.busy;
    if (talk) talk.over(form, failed);
  }
}

// Disabled until they are listened to: a browser by itself would send them without the CSRF token.
for (const form of $$("form[data-work]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(form, new FormData(form, event.submitter));
  });
  $("fieldset", form).disabled = false;
}

// Pictures that are dropped, pasted or picked

const drop = $("form[data-drop]");
if (drop) {
  const take = (file) => {
    if (!file) return;
    const data = new FormData();
    data.append("file", file, file.name || "pasted picture");
    submit(drop, data);
  };
  $("input[type=file]", drop).addEventListener("change", (event) => take(event.target.files[0]));
  addEventListener("paste", (event) => take([...(event.clipboardData?.files || [])][0]));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
}

// A conversation: the question and the answer as it is written

function conversation(question) {
  const list = $("[data-turns]");
  const log = $("[data-log]");
  const turn = (kind, who, text) => {
    const item = document.createElement("li");
    item.className = kind;
    const name = document.createElement("span");
    name.className = "who";
    name.textContent = who;
    const said = document.createElement("p");
    said.textContent = text;
    item.append(name, said);
    list.append(item);
    log.scrollTop = log.scrollHeight;
    return said;
  };
  turn("asked", "You", question);
  const said = turn("said", "Model", "…");
  let begun = false;
  return {
    add(text) {
      said.textContent = begun ? said.textContent + text : text;
      begun = true;
      log.scrollTop = log.scrollHeight;
    },
    end(answer) {
      said.textContent = answer || "(no answer)";
    },
    over(form, failed) {
      const input = $("input[name=question]", form);
      if (failed) said.textContent = begun ? `${said.textContent} (stopped)` : "(no answer)";
      else input.value = "";
      input.focus();
    },
  };
}

// The picture view: slider, overlays, one patch, pixels

const SIDE = 16; // px of a patch

function pictureView(view) {
  const base = view.dataset.picture;
  const [width, height] = [Number(view.dataset.width), Number(view.dataset.height)];
  const [rows, cols] = [Number(view.dataset.rows), Number(view.dataset.cols)];
  const stage = $("[data-stage]");
  const over = $("[data-over]");
  const under = $("[data-under]");
  const [row, col] = [$("[data-row]"), $("[data-col]")];
  const mark = $("[data-mark]");
  const lines = $("[data-lines]");
  const pictures = new Map();
  let pinned = false;

  const load = (file) => {
    if (!pictures.has(file)) {
      const image = new Image();
      image.src = `${base}/file/${file}`;
      pictures.set(file, image.decode().then(() => image));
    }
    return pictures.get(file);
  };

  const cut = () => {
    if (!over) return;
    const share = Number($("[data-slider]").value);
    over.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
    $("[data-bar]").style.left = `${share}%`;
  };
  $("[data-slider]")?.addEventListener("input", cut);
  for (const radio of $$("input[name=under]")) {
    radio.addEventListener("change", () => {
      under.src = `${base}/file/${radio.value}`;
      under.alt = `By ${radio.dataset.title}`;
      $("[data-under-name]").textContent = radio.dataset.title;
    });
  }
  for (const box of $$("[data-show]")) {
    box.addEventListener("change", () => {
      const layer = $(`[data-${box.dataset.show}]`);
      if (layer.dataset.src && !layer.getAttribute("src")) layer.src = layer.dataset.src;
      layer.hidden = !box.checked;
      if (box.dataset.show === "bits") $("[data-legend]").hidden = !box.checked;
      measure();
    });
  }

  const measure = () => {
    const px = (SIDE * stage.clientWidth) / width;
    lines.style.backgroundSize = `${px}px ${px}px`;
    place();
  };
  const place = () => {
    const scale = stage.clientWidth / width;
    mark.hidden = false;
    mark.style.left = `${col.value * SIDE * scale}px`;
    mark.style.top = `${row.value * SIDE * scale}px`;
    mark.style.width = `${Math.min(SIDE, width - col.value * SIDE) * scale}px`;
    mark.style.height = `${Math.min(SIDE, height - row.value * SIDE) * scale}px`;
  };

  const paint = async (canvas, file, left, top, side) => {
    const image = await load(file);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, left, top, side, side, 0, 0, canvas.width, canvas.height);
  };
  const panes = () => {
    const zoom = Number($("[data-zoom]").value);
    for (const canvas of $$("[data-pane]")) {
      const shown = Math.round(canvas.clientWidth * devicePixelRatio);
      canvas.width = canvas.height = shown;
      const side = shown / (zoom * devicePixelRatio);
      const left = Math.max(0, Math.min(width - side, (Number(col.value) + 0.5) * SIDE - side / 2));
      const top = Math.max(0, Math.min(height - side, (Number(row.value) + 0.5) * SIDE - side / 2));
      paint(canvas, canvas.dataset.pane, Math.round(left), Math.round(top), side);
    }
  };
  $("[data-zoom]").addEventListener("change", panes);

  let asked = 0;
  let timer = 0;
  const tell = async () => {
    const mine = ++asked;
    const answer = await fetch(`${base}/patch/${row.value}/${col.value}`, { headers: { Accept: "application/json" } });
    if (!answer.ok || mine !== asked) return;
    const patch = await answer.json();
    $("[data-alone]").src = `${base}/patch/${row.value}/${col.value}/alone.png`;
    $$("[data-codes] li").forEach((item, number) => {
      const id = document.createElement("b");
      id.textContent = patch.codes[number].id;
      const says = document.createElement("span");
      says.textContent = ` ${patch.codes[number].says}`;
      item.replaceChildren(id, says);
    });
    if (patch.bits !== null) $("[data-patch-bits]").textContent = `${patch.bits} bits under the entropy model`;
  };
  const choose = (r, c) => {
    row.value = Math.max(0, Math.min(rows - 1, r));
    col.value = Math.max(0, Math.min(cols - 1, c));
    place();
    panes();
    for (const canvas of $$("[data-crop]")) paint(canvas, canvas.dataset.crop, col.value * SIDE, row.value * SIDE, SIDE);
    clearTimeout(timer);
    timer = setTimeout(tell, 60);
  };
  for (const input of [row, col]) {
    input.addEventListener("input", () => {
      if (row.value !== "" && col.value !== "") choose(Number(row.value), Number(col.value));
    });
  }
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    const scale = box.width / width;
    return [Math.floor((event.clientY - box.top) / scale / SIDE), Math.floor((event.clientX - box.left) / scale / SIDE)];
  };
  stage.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && !pinned) choose(...at(event));
  });
  stage.addEventListener("click", (event) => {
    pinned = event.detail === 1 ? !pinned : pinned;
    choose(...at(event));
  });
  new ResizeObserver(measure).observe(stage);
  addEventListener("resize", panes);
  cut();
  choose(Number(row.value), Number(col.value));
}
if ($("[data-picture]")) pictureView($("[data-picture]"));

// A page whose answer is not there yet: looked at again

if ($("[data-again]")) setTimeout(() => location.reload(), 1000);

// A run that trains: read again, without moving what is looked at

const run = $("[data-refresh]");
if (run && run.dataset.live) {
  let tag = "";
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(run.dataset.refresh, { headers: { "If-None-Match": tag }, cache: "no-store" });
      if (answer.status !== 200) return;
      tag = answer.headers.get("ETag") || "";
      // Of our own templates, in which everything foreign is escaped.
      run.innerHTML = await answer.text();
      $("[data-refreshed]").textContent = `Read at ${new Date().toLocaleTimeString()}.`;
    } catch {
      $("[data-refreshed]").textContent = "The server cannot be reached; trying again.";
    }
  }, 5000);
}
