// One video of the feed as a card: what it looks like, how it plays, which buttons it has.

import { glyphOf, handle, money, paint, seconds } from "./art.js";

export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const DEFAULT_MS = 15000;

export class Card {
  /** `slot` comes from /v1/feed, `video` from /demo/videos; `on` gets (action, card, details). */
  constructor(slot, video, page, on) {
    Object.assign(this, { slot, video, page, on, watchedMs: 0, liked: false, paused: false, reported: false });
    this.durationMs = video.duration_ms > 0 ? video.duration_ms : DEFAULT_MS;
    this.node = this.#draw();
  }

  get title() {
    return this.video.title ?? `Video ${this.slot.video_id}`;
  }

  #draw() {
    const { slot, video } = this;
    const id = `video-${this.page.number}-${slot.position}`;
    const button = (name, glyph, label, action) =>
      element("button", { class: `round ${name}`, "aria-label": `${label}: ${this.title}`, title: label, onclick: action },
        element("span", { "aria-hidden": "true" }, glyph), element("small", { "aria-hidden": "true" }, label));
    this.likeButton = button("like", "♥", "Like", () => this.like());
    this.likeButton.setAttribute("aria-pressed", "false");
    this.progress = element("i");
    const card = element("article", { class: "card", id, tabindex: "-1", "aria-labelledby": `${id}-title`, "aria-posinset": this.page.first + slot.position + 1, "aria-setsize": -1 },
      element("div", { class: "art", "aria-hidden": "true", onclick: () => this.toggle() },
        element("span", { class: "glyph" }, glyphOf(video)), element("span", { class: "pause" }, "❚❚")),
      element("div", { class: "rail" },
        this.likeButton,
        button("hide", "✕", "Hide", () => this.on("hide", this)),
        button("share", "➤", "Share", () => this.on("share", this)),
        button("why", "✦", "Why", () => this.on("why", this))),
      element("div", { class: "words" },
        this.#badge(),
        element("p", { class: "creator" }, handle(video),
          element("button", { class: "follow", "aria-label": `Follow ${handle(video)}`, onclick: (event) => this.#follow(event.currentTarget) }, "Follow")),
        element("h2", { id: `${id}-title`, dir: "auto" }, this.title),
        element("p", { class: "tags" }, ...(video.tags ?? []).slice(0, 3).map((tag) => element("span", {}, `#${tag}`))),
        ...slot.products.slice(0, 2).map((product) => this.#product(product))),
      element("div", { class: "progress", "aria-hidden": "true" }, this.progress, element("time", {}, seconds(this.durationMs))));
    paint(card, video);
    return card;
  }

  #badge() {
    if (this.slot.campaign_id) return element("p", { class: "badge paid" }, this.slot.label ?? "Sponsored");
    if (this.slot.source === "exploration") return element("p", { class: "badge" }, "Something new");
    if (this.slot.source === "popularity") return element("p", { class: "badge" }, "Popular now");
    return null;
  }

  #product(product) {
    const known = this.video.products?.find((other) => String(other.product_id) === String(product.product_id)) ?? {};
    const name = known.title ?? `Product ${product.product_id}`;
    const price = money(product.price_minor, product.currency);
    const act = (action) => () => this.on(action, this, { ...product, name, brand: known.brand, price });
    return element("div", { class: "product" },
      element("button", { class: "open", "aria-label": `Look at ${name}, ${price}`, onclick: act("product_click") },
        element("span", { class: "pic", "aria-hidden": "true" }, glyphOf({ title: known.category, video_id: product.product_id })),
        element("span", { class: "name" }, element("b", {}, name), element("small", {}, known.brand ?? "")),
        element("span", { class: "price" }, price)),
      element("span", { class: "buy" },
        element("button", { class: "cart", onclick: act("add_to_cart"), "aria-label": `Add ${name} to the bag` }, "Add to bag"),
        element("button", { class: "purchase", onclick: act("purchase"), "aria-label": `Buy ${name} for ${price}` }, "Buy now")));
  }

  #follow(button) {
    button.disabled = true;
    button.textContent = "Following";
    this.on("follow", this);
  }

  like() {
    if (this.liked) return;
    this.liked = true;
    this.likeButton.setAttribute("aria-pressed", "true");
    this.on("like", this);
  }

  toggle() {
    this.paused = !this.paused;
    this.node.classList.toggle("paused", this.paused);
  }

  /** Plays on by `ms`, looping; what counts is the time watched. */
  play(ms) {
    if (this.paused) return;
    this.watchedMs += ms;
    this.progress.style.transform = `scaleX(${(this.watchedMs % this.durationMs) / this.durationMs})`;
  }

  /** The impression, once: how long it was watched, and whether that was long (all of it, or 18 s). */
  impression() {
    if (this.reported) return null;
    this.reported = true;
    const watched = Math.round(this.watchedMs);
    return { watch_ms: watched, long_view: watched >= Math.min(this.durationMs, 18000), position: this.slot.position };
  }
}
