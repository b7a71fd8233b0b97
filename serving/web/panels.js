// What stands around the feed: why a video was chosen, how the server is doing, what is in the bag.

import { get, metrics } from "./api.js";
import { money } from "./art.js";
import { element } from "./card.js";

const SOURCES = {
  two_tower: "Found by taste: your history and this video lie close together in the model's space.",
  popularity: "Popular here: the model could not be asked in time, so this is what others watch.",
  exploration: "Drawn by lot: some slots explore, with a probability that is written down.",
  campaign: "Paid for: a campaign reserved this slot.",
  fresh: "New: among the latest videos, and then on its own merit.",
  followed: "From a creator you follow.",
  popular: "Popular in this market, and then on its own merit.",
};
const GAVE_WAY = { exploration: "drawn by lot", first_showing: "a newcomer's promised showing", campaign: "a campaign's slot" };
const RULES = {
  already_shown: "shown before", hidden_video: "hidden by you", hidden_creator: "creator hidden", hidden_merchant: "shop hidden",
  market: "not for this market, or sold out", language: "another language",
};

const row = (name, value) => element("div", { class: "fact" }, element("dt", {}, name), element("dd", {}, value));

export function showWhy(panel, card, page) {
  const video = page.videos.find((other) => String(other.video_id) === String(card.slot.video_id));
  const why = video.why;
  const moved = why.moved === 0 ? "" : why.moved > 0 ? ` (moved up ${why.moved})` : ` (moved down ${-why.moved})`;
  const refused = Object.entries(page.refused).map(([rule, count]) => `${count} ${RULES[rule] ?? rule}`);
  panel.replaceChildren(
    element("h2", { dir: "auto" }, card.title),
    element("p", {}, SOURCES[video.source] ?? `Source: ${video.source}.`),
    element("dl", {},
      row("Place by score", why.rank === null ? "reserved" : `${why.rank + 1} of ${page.admitted}${moved}`),
      row("Score", video.score.toFixed(4)),
      ...(why.retrieval_score === null ? [] : [row("Retrieval", why.retrieval_score.toFixed(4))]),
      ...Object.entries(why.heads).map(([task, p]) => row(task.replaceAll("_", " "), `${(100 * p).toFixed(2)} %`)),
      row("Propensity", video.propensity === 1 ? "1 (certain)" : video.propensity.toPrecision(4)),
      row("Your history", `${page.history_steps} steps read`),
      row("Market", page.market ?? "any"),
      row("Gave way", why.rules.length ? why.rules.map((rule) => GAVE_WAY[rule] ?? rule.replaceAll("_", " ")).join(", ") : "nothing"),
      ...(page.experiments ? [row("Experiments", Object.entries(page.experiments).map(([name, arm]) => `${name}: ${arm}`).join(", ").replaceAll("_", " "))] : []),
      row("Refused", refused.length ? refused.join(", ") : "nobody"),
      row("Bundle", page.bundle)),
    element("p", { class: "fine" }, "From POST /v1/explain. Request ", element("code", {}, page.request_id)));
}

function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!found) continue;
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(/(\w+)="([^"]*)"/g)].map((pair) => [pair[1], pair[2]]));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

function quantile(samples, name, label, value, q) {
  const buckets = samples.filter((s) => s.name === `${name}_bucket` && s.labels[label] === value)
    .map((s) => [s.labels.le === "+Inf" ? Infinity : Number(s.labels.le), s.value]).sort((a, b) => a[0] - b[0]);
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return null;
  let below = 0, from = 0;
  for (const [bound, count] of buckets) {
    if (count >= q * total) {
      if (bound === Infinity) return from;
      return from + (bound - from) * ((q * total - below) / Math.max(count - below, 1e-9));
    }
    below = count; from = bound;
  }
  return from;
}

/** How far a campaign is: bright what is spent, dim what is due by now, of the budget of its day or flight. */
function pacing(campaign) {
  const { pace } = campaign;
  const unit = (amount) => (campaign.guaranteed ? `${Math.round(amount)}` : money(Math.round(amount), campaign.currency));
  const bar = element("span", { class: "bar" }, element("i", { class: "all" }), element("i"));
  bar.children[0].style.transform = `scaleX(${pace ? pace.due / pace.budget : 0})`;
  bar.children[1].style.transform = `scaleX(${pace ? pace.spent / pace.budget : 0})`;
  const cost = campaign.cost_slots
    ? `${campaign.cost_slots} of them cost ${(campaign.cost_watch_ms / 1000).toFixed(1)} s of predicted watch time and ${campaign.cost_orders.toFixed(4)} orders`
    : "what they cost is not predicted: that takes a ranker";
  const name = campaign.campaign_id.replaceAll("_", " ");
  const told = pace ? `${unit(pace.spent)} of ${unit(pace.budget)}, ${unit(pace.due)} due` : campaign.flight;
  return element("div", { class: "campaign" },
    element("div", { role: "img", "aria-label": `${name}: ${told}` }, element("em", {}, name), bar, element("small", {}, told)),
    element("p", { class: "fine" }, `${campaign.impressions} slots; ${cost}`,
      campaign.missing_videos.length ? `; ${campaign.missing_videos.length} videos are not in the catalogue` : ""));
}

export async function showServer(panel) {
  const [text, { campaigns }] = await Promise.all([metrics(), get("/v1/campaigns")]);
  const samples = parse(text);
  const of = (name) => samples.filter((s) => s.name === name);
  const ms = (value) => (value === null ? "–" : `${(1000 * value).toFixed(1)} ms`);
  const stages = of("shopreel_stage_seconds_count").map((s) => s.labels.stage);
  const list = (name, label) => of(name).map((s) => row(s.labels[label].replaceAll("_", " "), s.value));
  const slowest = Math.max(0.001, ...stages.map((stage) => quantile(samples, "shopreel_stage_seconds", "stage", stage, 0.99) ?? 0));
  panel.replaceChildren(
    element("h2", {}, of("shopreel_bundle").map((s) => s.labels.bundle).join(", ")),
    element("dl", {},
      row("A page, median", ms(quantile(samples, "shopreel_request_seconds", "route", "/v1/feed", 0.5))),
      row("A page, p99", ms(quantile(samples, "shopreel_request_seconds", "route", "/v1/feed", 0.99)))),
    element("h3", {}, "Where the time goes (p99)"),
    element("div", { class: "bars" }, ...stages.map((stage) => {
      const p99 = quantile(samples, "shopreel_stage_seconds", "stage", stage, 0.99) ?? 0;
      const bar = element("span", { class: "bar" }, element("i"));
      bar.firstChild.style.transform = `scaleX(${p99 / slowest})`;
      return element("div", {}, element("em", {}, stage), bar, element("small", {}, ms(p99)));
    })),
    element("h3", {}, "Videos handed out, by source"), element("dl", {}, ...list("shopreel_slots_total", "source")),
    element("h3", {}, "Campaigns: spent, and due by now"),
    ...(campaigns.length ? campaigns.map(pacing) : [element("p", { class: "fine" }, "No plan has any.")]),
    ...(of("shopreel_arms_total").length ? [element("h3", {}, "Pages by experiment and arm"),
      element("dl", {}, ...of("shopreel_arms_total").map((s) => row(`${s.labels.experiment}: ${s.labels.arm}`.replaceAll("_", " "), s.value)))] : []),
    element("h3", {}, "Events taken in"), element("dl", {}, ...list("shopreel_events_total", "kind")),
    element("h3", {}, "Degraded"), element("dl", {}, ...(of("shopreel_degraded_total").length ? list("shopreel_degraded_total", "reason") : [row("nothing", 0)])),
    element("p", { class: "fine" }, "From ", element("a", { href: "/metrics" }, "/metrics"), ". The API: ", element("a", { href: "/docs" }, "/docs"), "."));
}

export function showBag(panel, bag) {
  panel.replaceChildren(
    element("h2", {}, bag.length ? "Your bag" : "Nothing in the bag yet"),
    element("ul", { class: "bag" }, ...bag.map((entry) => element("li", {}, element("b", {}, entry.name),
      element("small", {}, `${entry.brand ?? ""} ${entry.bought ? "· bought" : ""}`), element("span", { class: "price" }, entry.price)))));
}

export function showMix(panel, shown) {
  const count = (videos) => {
    const shares = new Map();
    for (const video of videos) shares.set(video.category ?? "other", (shares.get(video.category ?? "other") ?? 0) + 1 / videos.length);
    return shares;
  };
  const all = count(shown), last = count(shown.slice(-12));
  const top = [...all.keys()].sort((a, b) => (last.get(b) ?? 0) - (last.get(a) ?? 0) || all.get(b) - all.get(a)).slice(0, 7);
  panel.replaceChildren(...top.map((name) => {
    const bar = element("span", { class: "bar" }, element("i", { class: "all" }), element("i"));
    bar.children[0].style.transform = `scaleX(${all.get(name)})`;
    bar.children[1].style.transform = `scaleX(${last.get(name) ?? 0})`;
    return element("div", {}, element("em", {}, name), bar, element("small", {}, `${Math.round(100 * (last.get(name) ?? 0))} %`));
  }));
}
