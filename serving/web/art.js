// Draws a video that has no footage: colours from its creator, a glyph from its subject, type from its title.

const GLYPHS = [
  ["streetwear", "🧢"], ["sneaker", "👟"], ["vintage", "🕰️"], ["jewel", "💍"], ["makeup", "💄"], ["skincare", "🧴"],
  ["hair", "💇"], ["nail", "💅"], ["fragrance", "🌸"], ["fitness", "🏋️"], ["yoga", "🧘"], ["running", "🏃"],
  ["cycling", "🚲"], ["football", "⚽"], ["camping", "⛺"], ["garden", "🌿"], ["pet", "🐾"], ["kitchen", "🍳"],
  ["baking", "🧁"], ["coffee", "☕"], ["tea", "🍵"], ["decor", "🪴"], ["clean", "🧼"], ["diy", "🔧"],
  ["gaming", "🎮"], ["phone", "📱"], ["gadget", "🎧"], ["photo", "📷"], ["music", "🎵"], ["book", "📚"],
  ["travel", "✈️"], ["art", "🎨"], ["craft", "🧶"], ["clay", "🏺"], ["toy", "🧸"], ["baby", "🍼"], ["car", "🚗"],
  ["dance", "💃"], ["anime", "🌟"], ["fashion", "👗"], ["beauty", "💄"], ["home", "🛋️"], ["sport", "🏅"],
  ["food", "🍜"], ["tech", "💻"], ["outdoor", "🏔️"], ["family", "🧸"], ["culture", "🎭"], ["electronics", "🔌"],
];
const OTHERS = ["✨", "🎬", "🌈", "🪩", "🍭", "🛍️", "💫", "🎈"];

export function hash(value) {
  let h = 2166136261;
  for (const letter of String(value)) h = Math.imul(h ^ letter.codePointAt(0), 16777619);
  return h >>> 0;
}

const drawn = new Map();

/** Whether this machine has a picture for an emoji: one that it lacks looks like a character that nobody has. */
function canDraw(glyph) {
  if (!drawn.has(glyph)) {
    const look = (text) => {
      const canvas = Object.assign(document.createElement("canvas"), { width: 24, height: 24 });
      const pen = canvas.getContext("2d");
      pen.font = "18px system-ui, sans-serif";
      pen.fillText(text, 2, 20);
      return canvas.toDataURL();
    };
    drawn.set(glyph, look(glyph) !== look("\u{10fffe}"));
  }
  return drawn.get(glyph);
}

/** An emoji for the subject of a video, or its initial where the machine has no emoji. */
export function glyphOf(video) {
  const glyph = emojiOf(video);
  if (canDraw(glyph)) return glyph;
  return [...String(video.category ?? video.title ?? video.video_id)][0].toUpperCase();
}

function emojiOf(video) {
  const subjects = [...(video.tags ?? []), video.title ?? "", video.category ?? ""].map((word) => String(word).toLowerCase());
  for (const subject of subjects) {
    const found = GLYPHS.find(([word]) => subject.includes(word));
    if (found) return found[1];
  }
  return OTHERS[hash(video.video_id) % OTHERS.length];
}

/** Sets the custom properties that feed.css paints with. */
export function paint(element, video) {
  const hue = hash(video.creator_id ?? video.video_id) % 360;
  const seed = hash(video.video_id);
  const set = (name, value) => element.style.setProperty(name, value);
  set("--hue", hue);
  set("--hue2", (hue + 40 + (seed % 70)) % 360);
  set("--tilt", `${(seed % 24) - 12}deg`);
  set("--x", `${18 + (seed % 60)}%`);
  set("--y", `${14 + ((seed >> 6) % 34)}%`);
}

export function handle(video) {
  return video.creator_id === undefined ? "unknown creator" : `@${video.creator_id}`;
}

export function money(minor, currency) {
  if (minor === null || minor === undefined || !currency) return "";
  const format = new Intl.NumberFormat(undefined, { style: "currency", currency });
  return format.format(minor / 10 ** format.resolvedOptions().maximumFractionDigits);
}

export function seconds(ms) {
  const whole = Math.round((ms ?? 0) / 1000);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
