// The feed: fetches pages as one scrolls, plays the card in view, and tells the server what happened.

import { get, newId, post } from "./api.js";
import { Card, element } from "./card.js";
import { showBag, showMix, showServer, showWhy } from "./panels.js";

const PAGE_SIZE = 6;
const AHEAD = 2; // cards left below when the next page is fetched: few, so that it knows what just happened
const $ = (id) => document.getElementById(id);
const SAID = {
  like: "Liked", hide: "Hidden for good", share: "Shared", follow: "Following", product_click: "Looked at",
  add_to_cart: "Put in the bag", purchase: "Bought", impression: "Watched",
};

class Feed {
  constructor() {
    this.user = null;
    this.bag = [];
    this.clear();
    this.observer = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (entry.isIntersecting) this.enter(this.cards.find((card) => card.node === entry.target));
    }), { root: $("feed"), threshold: 0.6 });
    let last = performance.now();
    const tick = (now) => {
      if (this.current && !document.hidden) this.current.play(Math.min(now - last, 100));
      last = now;
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  clear() {
    Object.assign(this, { cards: [], shown: [], pages: 0, cursor: null, current: null, ended: false, loading: null });
    $("feed").replaceChildren();
    $("told").replaceChildren();
  }

  async begin(user) {
    this.leave();
    this.clear();
    this.user = user;
    this.generation = (this.generation ?? 0) + 1;
    this.bag = [];
    this.showBag();
    await this.more();
  }

  /** The next page; one at a time, and only when the events before it are in. */
  more() {
    if (this.loading || this.ended) return this.loading;
    this.loading = this.fetch().catch((error) => this.failed(error)).finally(() => { this.loading = null; });
    return this.loading;
  }

  async fetch() {
    const generation = this.generation;
    $("feed").setAttribute("aria-busy", "true");
    await this.sending;
    const question = { user_id: this.user, page_size: PAGE_SIZE, surface: "feed" };
    if (this.cursor) question.cursor = this.cursor;
    const answer = await post("/v1/feed", question);
    const ids = answer.videos.map((video) => `id=${encodeURIComponent(video.video_id)}`).join("&");
    const details = ids ? (await get(`/demo/videos?${ids}`)).videos : [];
    if (generation !== this.generation) return;
    const page = { number: this.pages++, first: this.cards.length, request: answer.request_id };
    this.cursor = answer.cursor;
    answer.videos.forEach((slot, place) => {
      const card = new Card(slot, details[place], page, (action, ...rest) => this.act(action, ...rest));
      this.cards.push(card);
      this.shown.push(details[place]);
      $("feed").append(card.node);
      this.observer.observe(card.node);
    });
    showMix($("mix"), this.shown);
    if (answer.degraded.length) this.say(`Degraded: ${answer.degraded.join(", ").replaceAll("_", " ")}`);
    if (!answer.videos.length) this.end();
    $("feed").setAttribute("aria-busy", "false");
  }

  end() {
    this.ended = true;
    $("feed").append(element("section", { class: "card end" }, element("div", { class: "words" },
      element("h2", {}, "That was everything"), element("p", {}, "Every video there is has been shown to you. None comes back."))));
  }

  failed(error) {
    if (error.code === "session_expired" || error.code === "invalid_cursor") {
      this.say("This feed had expired; here is a new one");
      return this.begin(this.user);
    }
    $("feed").setAttribute("aria-busy", "false");
    $("feed").querySelector(".retry")?.remove();
    $("feed").append(element("section", { class: "card end retry" }, element("div", { class: "words" },
      element("h2", {}, "The server does not answer"), element("p", {}, error.message),
      element("button", { class: "purchase", onclick: (event) => { event.target.closest(".retry").remove(); this.more(); } }, "Try again"))));
  }

  enter(card) {
    if (!card || card === this.current) return;
    this.leave();
    this.current = card;
    card.node.classList.add("playing");
    if (this.cards.length - this.cards.indexOf(card) <= AHEAD + 1) this.more();
    if (!$("why").hidden && $("reasons").matches(".open, .right:not(.open)") && window.innerWidth >= 1080) this.why(card);
  }

  leave() {
    const card = this.current;
    this.current = null;
    card?.node.classList.remove("playing");
    const seen = card?.impression();
    if (seen) this.tell("impression", card, { type: "impression", ...seen });
  }

  /** Send one event; the next page waits for it. */
  tell(what, card, fields) {
    const event = { event_id: newId(), user_id: this.user, video_id: card.slot.video_id, request_id: card.page.request, surface: "feed", ...fields };
    const line = element("li", { dir: "auto" }, element("b", {}, SAID[what]), ` ${fields.name ?? card.title}`,
      what === "impression" ? element("small", {}, ` ${(fields.watch_ms / 1000).toFixed(1)} s`) : "");
    $("told").prepend(line);
    while ($("told").children.length > 12) $("told").lastChild.remove();
    delete event.name;
    const before = this.sending ?? Promise.resolve();
    this.sending = before.then(() => post("/v1/events", { events: [event] }))
      .then(() => line.classList.add("in"), (error) => { line.classList.add("lost"); this.say(`Not taken in: ${error.message}`); });
    return this.sending;
  }

  act(action, card, details) {
    if (action === "why") return this.why(card, true);
    const fields = { type: "action", action, name: details?.name };
    if (details) Object.assign(fields, { product_id: details.product_id });
    if (action === "purchase" && details?.price_minor != null) Object.assign(fields, { order_value_minor: details.price_minor, currency: details.currency });
    this.tell(action, card, fields);
    if (action === "add_to_cart" || action === "purchase") {
      this.bag.unshift({ ...details, bought: action === "purchase" });
      this.showBag();
    }
    if (action === "hide") this.hide(card);
    if (action !== "product_click") this.say(`${SAID[action]}. The next page knows.`);
    else this.say(`${details.name} ${details.price}`);
  }

  hide(card) {
    const next = this.cards[this.cards.indexOf(card) + 1];
    next?.node.scrollIntoView({ behavior: "smooth" });
    card.node.classList.add("gone");
  }

  async why(card, open = false) {
    if (open) {
      openTab("why");
      $("reasons").classList.add("open");
    }
    try {
      const page = await post("/v1/explain", { user_id: this.user, request_id: card.page.request });
      if (open || card === this.current) showWhy($("why"), card, page);
    } catch (error) {
      $("why").replaceChildren(element("p", {}, error.message));
    }
  }

  step(by) {
    const place = this.cards.indexOf(this.current) + by;
    const card = this.cards[Math.max(0, Math.min(place, this.cards.length - 1))];
    card?.node.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    card?.node.focus({ preventScroll: true });
  }

  showBag() {
    $("bag-count").textContent = this.bag.length || "";
    showBag($("bag"), this.bag);
  }

  say(text) {
    $("toast").textContent = text;
    $("toast").classList.add("on");
    clearTimeout(this.toast);
    this.toast = setTimeout(() => $("toast").classList.remove("on"), 2200);
  }
}

function openTab(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (name === "server") showServer($("server"));
}

async function start() {
  const feed = new Feed();
  window.addEventListener("pagehide", () => feed.leave());
  const known = await get("/demo/users");
  $("about").textContent = `${known.videos.toLocaleString()} videos. Choose someone: the feed is theirs from the first page.`;
  for (const user of known.users) {
    const steps = user.steps ? `${user.steps} steps` : "no history";
    $("user").append(element("option", { value: user.user_id }, `${user.user_id} · ${user.market ?? "any market"} · ${steps}`));
  }
  const chosen = new URLSearchParams(location.search).get("user") ?? known.users[0]?.user_id ?? "somebody";
  const watch = (user) => {
    const text = String(user);
    if (![...$("user").options].some((option) => option.value === text)) $("user").prepend(element("option", { value: text }, text));
    $("user").value = text;
    history.replaceState(null, "", `?user=${encodeURIComponent(text)}`);
    return feed.begin(text);
  };
  $("user").addEventListener("change", () => watch($("user").value));
  $("restart").addEventListener("click", () => watch(feed.user));
  $("other").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("other-id").value.trim()) watch($("other-id").value.trim());
  });
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.addEventListener("click", () => { openTab(tab.id.slice(4)); if (tab.id === "tab-why" && feed.current) feed.why(feed.current); });
    tab.addEventListener("keydown", (event) => {
      const tabs = [...document.querySelectorAll("[role=tab]")];
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const next = tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length];
      openTab(next.id.slice(4));
      next.focus();
    });
  }
  setInterval(() => { if (!$("server").hidden && !document.hidden) showServer($("server")); }, 2000);
  for (const button of document.querySelectorAll("[data-panel]")) {
    button.addEventListener("click", () => {
      const panel = $(button.dataset.panel), open = panel.classList.contains("open");
      document.querySelectorAll(".side.open").forEach((side) => side.classList.remove("open"));
      if (button.dataset.tab) openTab(button.dataset.tab);
      else if (button.dataset.panel === "reasons" && feed.current) feed.why(feed.current, true);
      panel.classList.toggle("open", !open);
    });
  }
  $("feed").addEventListener("pointerdown", () => document.querySelectorAll(".side.open").forEach((side) => side.classList.remove("open")));
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea, [role=tab]") || event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = {
      ArrowDown: () => feed.step(1), ArrowUp: () => feed.step(-1), j: () => feed.step(1), k: () => feed.step(-1),
      l: () => feed.current?.like(), h: () => feed.current && feed.act("hide", feed.current),
      w: () => feed.current && feed.why(feed.current, true), Escape: () => document.querySelectorAll(".side.open").forEach((side) => side.classList.remove("open")),
    };
    if (event.key === " " && !event.target.closest("button")) keys[" "] = () => feed.current?.toggle();
    const action = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (action) { event.preventDefault(); action(); }
  });
  await watch(chosen);
}

start().catch((error) => { $("about").textContent = `The page could not start: ${error.message}`; });
