// Talks to the server. Ids above 2^53 arrive as digits, because a JavaScript number would change them.

const KEY = "shopreel-api-key";

function exact(name, value, context) {
  if (typeof value !== "number" || !Number.isInteger(value) || Number.isSafeInteger(value)) return value;
  return context?.source ?? value;
}

export class ApiError extends Error {
  constructor(status, detail, retryAfter) {
    super(detail?.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = detail?.code ?? "unknown";
    this.retryAfter = retryAfter;
  }
}

async function call(path, options = {}) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  const answer = await fetch(path, { ...options, headers });
  const body = JSON.parse(await answer.text(), exact);
  if (answer.ok) return body;
  if (answer.status === 401) {
    const given = window.prompt("This server wants an API key");
    if (given) {
      sessionStorage.setItem(KEY, given);
      return call(path, options);
    }
  }
  throw new ApiError(answer.status, body.error, Number(answer.headers.get("retry-after") ?? 0));
}

/** POST until it is done: an answer of 429 or 503 says when to come back. Events may safely be sent twice. */
export async function post(path, body, attempts = 4) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await call(path, { method: "POST", body: JSON.stringify(body), keepalive: path === "/v1/events" });
    } catch (error) {
      const later = error.status === 429 || error.status === 503 || error instanceof TypeError;
      if (!later || attempt === attempts) throw error;
      await new Promise((resume) => setTimeout(resume, 1000 * (error.retryAfter || attempt)));
    }
  }
}

export const get = (path) => call(path);
export const metrics = async () => (await fetch("/metrics")).text();
export const newId = () => crypto.randomUUID?.() ?? [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
