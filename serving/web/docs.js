// Draws /openapi.json: every route with its fields, errors, and a place to try it.

const EXAMPLES = {
  "/v1/feed": { user_id: 1, page_size: 3 },
  "/v1/score": { user_id: 1, video_ids: [1, 2] },
  "/v1/explain": { user_id: 1, page_size: 1 },
  "/v1/events": { events: [{ type: "action", event_id: "example-1", user_id: 1, video_id: 1, action: "like" }] },
};

function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Text in which ``names`` stand between double backticks. */
const prose = (text) => text.split("``").map((part, place) => (place % 2 ? element("code", {}, part) : part));
const named = (reference) => reference.split("/").at(-1);

function typeOf(schema) {
  if (schema.$ref) return named(schema.$ref);
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter((kind) => kind !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.minimum < -1e18) return "int64";
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {})}`;
  const bounds = [
    schema.minimum !== undefined && `from ${schema.minimum}`, schema.maximum !== undefined && `to ${schema.maximum}`,
    schema.minLength !== undefined && `${schema.minLength} to ${schema.maxLength} characters`,
  ].filter(Boolean).join(" ");
  return [schema.format ?? schema.type ?? "any", bounds].filter(Boolean).join(", ");
}

function fields(name, all, seen = new Set()) {
  if (seen.has(name)) return [];
  seen.add(name);
  const schema = all[name];
  const inner = [...JSON.stringify(schema.properties ?? {}).matchAll(/#\/components\/schemas\/(\w+)/g)].map((found) => found[1]);
  const table = element("table", {}, ...Object.entries(schema.properties ?? {}).map(([key, value]) => element("tr", {},
    element("td", {}, element("code", {}, key), (schema.required ?? []).includes(key) ? element("span", { class: "must", title: "required" }, " *") : ""),
    element("td", {}, typeOf(value)), element("td", {}, ...prose(value.description ?? "")))));
  const parts = [element("h3", {}, name), element("p", {}, ...prose(schema.description ?? "")), ...(schema.properties ? [table] : [element("p", {}, typeOf(schema))])];
  return [...parts, ...inner.flatMap((other) => fields(other, all, seen))];
}

function trial(path) {
  const body = element("textarea", { "aria-label": `Body for ${path}`, spellcheck: "false" });
  body.value = JSON.stringify(EXAMPLES[path], null, 2);
  const out = element("pre", { "aria-live": "polite" });
  const send = async () => {
    const answer = await fetch(path, { method: "POST", body: body.value });
    out.textContent = `${answer.status}\n${JSON.stringify(JSON.parse(await answer.text()), null, 2)}`;
  };
  return [element("h3", {}, "Try it"), body, element("button", { onclick: send }, "Send"), out];
}

const document_ = await (await fetch("/openapi.json")).json();
const schemas = document_.components.schemas;
for (const [path, verbs] of Object.entries(document_.paths)) {
  for (const [verb, route] of Object.entries(verbs)) {
    const errors = Object.entries(route.responses).filter(([status]) => status !== "200");
    const section = element("section", {},
      element("h2", {}, element("span", { class: "verb" }, verb.toUpperCase()), element("code", {}, path), element("small", {}, route.summary)));
    if (route.requestBody) {
      const asked = named(route.requestBody.content["application/json"].schema.$ref);
      const answered = named(route.responses["200"].content["application/json"].schema.$ref);
      section.append(...fields(asked, schemas), ...fields(answered, schemas), ...trial(path));
    }
    if (errors.length) section.append(element("h3", {}, "Refusals"), element("table", {}, ...errors.map(([status, error]) => element("tr", {}, element("td", {}, status), element("td", {}, error.description)))));
    document.getElementById("routes").append(section);
  }
}
document.getElementById("routes").setAttribute("aria-busy", "false");
